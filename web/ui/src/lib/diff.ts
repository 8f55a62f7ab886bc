export interface Change {
  key: string;
  before: string | undefined;
  after: string | undefined;
}

function text(v: unknown): string | undefined {
  return v === undefined ? undefined : typeof v === 'string' ? v : JSON.stringify(v);
}

/** The fields that differ between two objects; of one that is new or gone, all. */
export function diff(before: unknown, after: unknown): Change[] {
  const a = (typeof before === 'object' && before !== null ? before : {}) as Record<string, unknown>;
  const b = (typeof after === 'object' && after !== null ? after : {}) as Record<string, unknown>;
  return [...new Set([...Object.keys(a), ...Object.keys(b)])].map((key) => ({ key, before: text(a[key]), after: text(b[key]) })).filter((c) => c.before !== c.after);
}
