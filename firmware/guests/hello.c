// The smallest guest: one line on the console, then the end (options exit= and off=, see guest.h).
#include "guest.h"

int main(void) {
  print("hello from a tsvmm guest: %s\n", option("say", "all is well"));
  return 0;
}
