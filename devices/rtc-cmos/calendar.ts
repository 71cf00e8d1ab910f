/** The Gregorian calendar over seconds since 1970-01-01, for any year from 0 on; no leap seconds. */

/** A date and time of day. */
export interface Calendar {
  year: number;
  /** 1-12. */
  month: number;
  /** 1-31. */
  day: number;
  /** 0 = Sunday. */
  weekday: number;
  hours: number;
  minutes: number;
  seconds: number;
}

export const DAY_SECONDS = 86_400;

/** Days from 1970-01-01 to the first of the month; years begin in March here, so that leap days come last. */
function daysBefore(year: number, month: number): number {
  const y = month <= 2 ? year - 1 : year;
  const shifted = (month + 9) % 12;
  const leapDays = Math.floor(y / 4) - Math.floor(y / 100) + Math.floor(y / 400);
  return 365 * y + leapDays + Math.floor((153 * shifted + 2) / 5) - 719_468;
}

/** Seconds since 1970 of a date; a month outside 1-12 is taken as the nearest, other fields may overflow. */
export function toSeconds(date: Omit<Calendar, 'weekday'>): number {
  const month = Math.min(Math.max(date.month, 1), 12);
  const days = daysBefore(date.year, month) + date.day - 1;
  return days * DAY_SECONDS + date.hours * 3600 + date.minutes * 60 + date.seconds;
}

/** The date of `seconds` since 1970, written into `out`. */
export function fromSeconds(seconds: number, out: Calendar): void {
  const days = Math.floor(seconds / DAY_SECONDS);
  const rest = seconds - days * DAY_SECONDS;
  // The year is close to this; at most one step off.
  let year = 1970 + Math.floor(days / 365.2425);
  while (daysBefore(year, 1) > days) year--;
  while (daysBefore(year + 1, 1) <= days) year++;
  let month = 12;
  while (daysBefore(year, month) > days) month--;
  out.year = year;
  out.month = month;
  out.day = days - daysBefore(year, month) + 1;
  out.weekday = (((days + 4) % 7) + 7) % 7;
  out.hours = Math.floor(rest / 3600);
  out.minutes = Math.floor(rest / 60) % 60;
  out.seconds = rest % 60;
}
