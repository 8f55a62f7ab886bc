/** The place in the page: path and query, kept in the browser's history. */
class Router {
  path = $state(location.pathname);
  query = $state.raw(new URLSearchParams(location.search));

  constructor() {
    addEventListener('popstate', () => this.read());
    document.addEventListener('click', (e) => {
      if (e.defaultPrevented || e.button !== 0 || e.metaKey || e.ctrlKey || e.shiftKey || e.altKey) return;
      const a = e.target instanceof Element ? e.target.closest('a') : null;
      if (!a || a.target || a.hasAttribute('download') || a.origin !== location.origin || a.pathname.startsWith('/v1/')) return;
      e.preventDefault();
      this.go(a.pathname + a.search);
    });
  }

  private read(): void {
    this.path = location.pathname;
    this.query = new URLSearchParams(location.search);
  }

  go(to: string, replace = false): void {
    if (to === location.pathname + location.search) return;
    const other = to.split('?')[0] !== location.pathname;
    history[replace ? 'replaceState' : 'pushState'](null, '', to);
    this.read();
    if (other) {
      scrollTo(0, 0);
      // A screen reader goes on where the new page begins.
      requestAnimationFrame(() => document.getElementById('main')?.focus({ preventScroll: true }));
    }
  }

  /** Changes filters in the address; empty values go. */
  filter(values: Record<string, string>): void {
    const q = new URLSearchParams(this.query);
    for (const [k, v] of Object.entries(values)) v ? q.set(k, v) : q.delete(k);
    const s = q.toString();
    this.go(this.path + (s ? '?' + s : ''), true);
  }

  /** First part of the path: the page; the rest, unescaped: the object. */
  get parts(): string[] {
    return this.path.split('/').filter(Boolean).map((p) => {
      try {
        return decodeURIComponent(p);
      } catch {
        return p;
      }
    });
  }
}

export const router = new Router();

export function href(...parts: string[]): string {
  return '/' + parts.map(encodeURIComponent).join('/');
}
