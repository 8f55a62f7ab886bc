// To make one takes longer than to format a thousand times.
const formats = new Map<string, Intl.DateTimeFormat>();

function format(lang: string, o: Intl.DateTimeFormatOptions): Intl.DateTimeFormat {
  const key = lang + ('second' in o);
  let f = formats.get(key);
  if (!f) formats.set(key, (f = new Intl.DateTimeFormat(lang, { hourCycle: 'h23', ...o })));
  return f;
}

/** Local date and time of an RFC 3339 text, in the page's language. */
export function local(text: string, lang: string): string {
  const d = new Date(text);
  if (Number.isNaN(d.getTime())) return text;
  const today = d.toDateString() === new Date().toDateString();
  return format(lang, today ? { hour: '2-digit', minute: '2-digit', second: '2-digit' } : { year: 'numeric', month: 'short', day: 'numeric', hour: '2-digit', minute: '2-digit' }).format(d);
}

/** The same in UTC, to the millisecond. */
export function utc(text: string): string {
  const d = new Date(text);
  return Number.isNaN(d.getTime()) ? text : d.toISOString().replace('T', ' ').replace('Z', ' UTC');
}

/** A span in two units: 2 d 3 h, 14 min 2 s, 45 ms. */
export function span(ms: number, units: readonly [string, string, string, string, string]): string {
  const [d, h, min, s, milli] = units;
  const abs = Math.abs(ms);
  if (abs < 1000) return `${Math.round(abs)} ${milli}`;
  const sec = Math.floor(abs / 1000);
  if (sec < 10 && abs % 1000 >= 100) return `${(abs / 1000).toFixed(1)} ${s}`;
  const parts: [number, string][] = [[Math.floor(sec / 86400), d], [Math.floor(sec / 3600) % 24, h], [Math.floor(sec / 60) % 60, min], [sec % 60, s]];
  const first = parts.findIndex(([n]) => n > 0);
  return parts.slice(first, first + 2).filter(([n]) => n > 0).map(([n, u]) => `${n} ${u}`).join(' ');
}

/** What a datetime-local field takes, of a Date. */
export function toField(d: Date): string {
  const p = (n: number) => String(n).padStart(2, '0');
  return `${d.getFullYear()}-${p(d.getMonth() + 1)}-${p(d.getDate())}T${p(d.getHours())}:${p(d.getMinutes())}`;
}

/** RFC 3339 of a datetime-local field; empty if it is not a time. */
export function fromField(text: string): string {
  const d = new Date(text);
  return text === '' || Number.isNaN(d.getTime()) ? '' : d.toISOString();
}
