import type { Problem } from './types';

/** What went wrong, in a form that pages can show: a code, a text, and whether a retry is safe. */
export class ApiError extends Error {
  constructor(
    /** A code of the API, or: unreachable (no answer came), timeout, aborted, garbled. */
    readonly code: string,
    readonly detail: string,
    readonly status = 0,
    readonly problem?: Problem,
    /** Seconds the server asked to wait. */
    readonly retryAfter = 0,
  ) {
    super(detail);
  }
}

export interface RequestOptions {
  method?: string;
  query?: Record<string, string | number | boolean | undefined | null>;
  /** JSON unless it is a string or Blob, which go as text/plain or contentType. */
  body?: unknown;
  contentType?: string;
  /** Revision the change is made to: If-Match. 0: what was never set has none. */
  revision?: number;
  /** A retry with the same key has one effect. */
  key?: string;
  signal?: AbortSignal;
  timeoutMs?: number;
}

let onUnauthorized: () => void = () => {};

/** Sets what is done when the session has ended. */
export function whenUnauthorized(f: () => void): void {
  onUnauthorized = f;
}

/** Makes a path below /v1 from parts, each escaped. */
export function path(...parts: string[]): string {
  return '/v1/' + parts.map(encodeURIComponent).join('/');
}

/** A random Idempotency-Key. */
export function newKey(): string {
  const b = crypto.getRandomValues(new Uint8Array(16));
  return 'web-' + Array.from(b, (x) => x.toString(16).padStart(2, '0')).join('');
}

function url(p: string, query: RequestOptions['query']): string {
  const q = new URLSearchParams();
  for (const [k, v] of Object.entries(query ?? {})) {
    if (v !== undefined && v !== null && v !== '') q.set(k, String(v));
  }
  const s = q.toString();
  return s ? `${p}?${s}` : p;
}

/** Sends one request. Throws ApiError, and nothing else. Ends at the latest after timeoutMs (15 s). */
async function request<T>(p: string, o: RequestOptions = {}): Promise<T> {
  return (await answer<T>(p, o)).data;
}

/** As request, with the log index of the state that answered; Infinity if that is not said. */
export async function answer<T>(p: string, o: RequestOptions = {}): Promise<{ data: T; index: number }> {
  const ctl = new AbortController();
  const timer = setTimeout(() => ctl.abort('timeout'), o.timeoutMs ?? 15_000);
  const abort = () => ctl.abort('aborted');
  o.signal?.addEventListener('abort', abort);
  if (o.signal?.aborted) abort();
  try {
    const headers: Record<string, string> = { 'Palisade-CSRF': '1' };
    let body: BodyInit | undefined;
    if (o.body !== undefined) {
      if (typeof o.body === 'string' || o.body instanceof Blob) {
        body = o.body;
        headers['Content-Type'] = o.contentType ?? 'text/plain';
      } else {
        body = JSON.stringify(o.body);
        headers['Content-Type'] = o.contentType ?? 'application/json';
      }
    }
    if (o.revision) headers['If-Match'] = `"${o.revision}"`;
    if (o.key) headers['Idempotency-Key'] = o.key;
    const init: RequestInit = { method: o.method ?? 'GET', headers, signal: ctl.signal, credentials: 'same-origin', cache: 'no-store' };
    if (body !== undefined) init.body = body;
    const res = await fetch(url(p, o.query), init);
    const text = await res.text();
    const data = read<T>(p, res.status, res.headers.get('Retry-After'), text, res.headers.get('Content-Type'));
    return { data, index: Number(res.headers.get('Palisade-Index') ?? Infinity) };
  } catch (e) {
    if (e instanceof ApiError) throw e;
    if (ctl.signal.aborted) throw new ApiError(ctl.signal.reason === 'timeout' ? 'timeout' : 'aborted', String(ctl.signal.reason));
    throw new ApiError('unreachable', String(e));
  } finally {
    clearTimeout(timer);
    o.signal?.removeEventListener('abort', abort);
  }
}

/** Reads an answer's body, or throws the problem that it is. */
function read<T>(p: string, status: number, retryAfter: string | null, text: string, type: string | null): T {
  if (status >= 200 && status < 300) {
    if (status === 204 || text === '') return undefined as T;
    if (!type?.includes('json') || type.includes('jsonl')) return text as T;
    try {
      return JSON.parse(text) as T;
    } catch {
      throw new ApiError('garbled', text.slice(0, 200), status);
    }
  }
  let problem: Problem | undefined;
  try {
    problem = JSON.parse(text) as Problem;
  } catch {
    // Not from the API: a proxy in between.
  }
  const code = problem?.code ?? 'http';
  if (status === 401 && code !== 'login_refused' && p !== '/v1/login') onUnauthorized();
  throw new ApiError(code, problem?.detail ?? `HTTP ${status}`, status, problem, Number(retryAfter) || 0);
}

export function get<T>(p: string, query?: RequestOptions['query'], o: RequestOptions = {}): Promise<T> {
  return request<T>(p, { ...o, ...(query ? { query } : {}) });
}

export function send<T>(method: string, p: string, body?: unknown, o: RequestOptions = {}): Promise<T> {
  return request<T>(p, { timeoutMs: 30_000, ...o, method, ...(body === undefined ? {} : { body }) });
}

/** PUTs a large body and tells how much of it went out (0 to 1). */
export function upload<T>(p: string, body: Blob, o: RequestOptions, progress: (share: number) => void): Promise<T> {
  return new Promise((done, fail) => {
    const x = new XMLHttpRequest();
    x.open('PUT', url(p, o.query));
    x.timeout = o.timeoutMs ?? 300_000;
    x.setRequestHeader('Palisade-CSRF', '1');
    x.setRequestHeader('Content-Type', o.contentType ?? 'text/plain');
    if (o.revision) x.setRequestHeader('If-Match', `"${o.revision}"`);
    x.upload.onprogress = (e) => e.lengthComputable && progress(e.loaded / e.total);
    x.onerror = () => fail(new ApiError('unreachable', ''));
    x.ontimeout = () => fail(new ApiError('timeout', ''));
    x.onabort = () => fail(new ApiError('aborted', ''));
    x.onload = () => {
      try {
        done(read<T>(p, x.status, x.getResponseHeader('Retry-After'), x.responseText, x.getResponseHeader('Content-Type')));
      } catch (e) {
        fail(e);
      }
    };
    o.signal?.addEventListener('abort', () => x.abort());
    x.send(body);
  });
}

/** Waits, or ends early when the signal fires. */
export function pause(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((done) => {
    const t = setTimeout(done, ms);
    signal?.addEventListener('abort', () => {
      clearTimeout(t);
      done();
    });
  });
}
