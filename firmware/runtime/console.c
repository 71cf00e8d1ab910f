#include "console.h"

#include "cpu.h"

static spinlock lock;
static uint8_t fifo_bytes = 1; // how many bytes may follow one look at LSR.THRE

// PC16550D data sheet, 8.4 (FCR), 8.6.3 (LSR), 8.7 (MCR).
void console_init(void) {
  outb(COM1 + 1, 0x00);
  outb(COM1 + 3, 0x80);
  outb(COM1 + 0, 1); // 115200 baud
  outb(COM1 + 1, 0);
  outb(COM1 + 3, 0x03);
  outb(COM1 + 2, 0x07);
  outb(COM1 + 4, 0x0b);
  if ((inb(COM1 + 2) & 0xc0) == 0xc0) fifo_bytes = 16;
}

static void put_bytes(const char *bytes, size_t n) {
  uint8_t room = 0;
  while (n--) {
    if (room == 0) {
      while (!(inb(COM1 + 5) & 0x20)) pause();
      room = fifo_bytes;
    }
    outb(COM1, *bytes++);
    room--;
  }
}

void console_write(const char *bytes, size_t n) {
  spin_lock(&lock);
  put_bytes(bytes, n);
  spin_unlock(&lock);
}

void console_drain(void) {
  for (uint32_t i = 0; i < 1000000 && !(inb(COM1 + 5) & 0x40); i++) pause();
}

struct line {
  char bytes[256];
  size_t used;
};

static void put(struct line *l, char c) {
  if (c == '\n') put(l, '\r');
  if (l->used == sizeof l->bytes) {
    put_bytes(l->bytes, l->used);
    l->used = 0;
  }
  l->bytes[l->used++] = c;
}

static void put_padded(struct line *l, const char *s, size_t n, unsigned width, char fill, bool left) {
  for (size_t i = n; !left && i < width; i++) put(l, fill);
  for (size_t i = 0; i < n; i++) put(l, s[i]);
  for (size_t i = n; left && i < width; i++) put(l, ' ');
}

static size_t digits(char out[24], uint64_t v, unsigned base, bool negative) {
  char reversed[24];
  size_t n = 0, used = 0;
  do {
    reversed[n++] = "0123456789abcdef"[v % base];
    v /= base;
  } while (v);
  if (negative) out[used++] = '-';
  while (n) out[used++] = reversed[--n];
  return used;
}

void vprint(const char *f, va_list args) {
  struct line l = {.used = 0};
  spin_lock(&lock);
  for (; *f; f++) {
    if (*f != '%') {
      put(&l, *f);
      continue;
    }
    bool left = false, wide = false;
    char fill = ' ';
    unsigned width = 0;
    for (f++; *f == '0' || *f == '-'; f++) *f == '-' ? (left = true) : (fill = '0');
    for (; *f >= '0' && *f <= '9'; f++) width = width * 10 + (unsigned)(*f - '0');
    for (; *f == 'l' || *f == 'z'; f++) wide = true;
    char number[24];
    switch (*f) {
      case 's': {
        const char *s = va_arg(args, const char *);
        put_padded(&l, s, strlen(s), width, ' ', left);
        break;
      }
      case 'c':
        put(&l, (char)va_arg(args, int));
        break;
      case 'd': {
        int64_t v = wide ? va_arg(args, int64_t) : va_arg(args, int);
        size_t n = digits(number, v < 0 ? -(uint64_t)v : (uint64_t)v, 10, v < 0);
        put_padded(&l, number, n, width, fill, left);
        break;
      }
      case 'u':
      case 'x':
      case 'p': {
        uint64_t v = wide || *f == 'p' ? va_arg(args, uint64_t) : va_arg(args, unsigned);
        put_padded(&l, number, digits(number, v, *f == 'u' ? 10 : 16, false), width, fill, left);
        break;
      }
      default:
        put(&l, *f);
    }
  }
  put_bytes(l.bytes, l.used);
  spin_unlock(&lock);
}

void print(const char *format, ...) {
  va_list args;
  va_start(args, format);
  vprint(format, args);
  va_end(args);
}
