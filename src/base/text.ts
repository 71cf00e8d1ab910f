/** What others wrote, shown to people: as a part of an error or of a line of the log. */

/** Longest piece that is shown. */
const SHOWN_MAX_CHARS = 500;

/** Control characters and line ends. */
export const CONTROL = /[\p{Cc}\p{Zl}\p{Zp}]/gu;

/** `text` as one line that a terminal can show: control characters as escapes, and not without end. */
export function shown(text: string): string {
  const start = text.slice(0, SHOWN_MAX_CHARS);
  const line = start.replace(
    CONTROL,
    (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
  return start.length < text.length ? `${line}...` : line;
}
