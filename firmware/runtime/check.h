// Named checks: each prints one line, "ok ..." or "FAIL ...", and a guest returns check_status() from main().
#ifndef CHECK_H
#define CHECK_H
#include "base.h"

bool check(bool good, const char *format, ...) __attribute__((format(printf, 2, 3)));
int check_status(void); // prints the tally; 1 if anything failed, else 0

#endif
