#include "check.h"

#include "console.h"

static uint32_t good_count, bad_count;

bool check(bool good, const char *format, ...) {
  va_list args;
  va_start(args, format);
  print(good ? "ok " : "FAIL ");
  vprint(format, args);
  print("\n");
  va_end(args);
  good ? good_count++ : bad_count++;
  return good;
}

int check_status(void) {
  print("%s: %u checks, %u failed\n", bad_count ? "FAIL" : "OK", good_count + bad_count, bad_count);
  return bad_count ? 1 : 0;
}
