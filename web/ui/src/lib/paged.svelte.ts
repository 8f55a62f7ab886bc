import { untrack } from 'svelte';
import { Again } from './again';
import { ApiError, get } from './api';
import { onChange } from './live.svelte';
import type { Page } from './types';

type Query = Record<string, string | number | boolean | undefined>;

/** What tells objects of one kind apart. */
function keyOf(x: unknown): unknown {
  const o = x as { id?: string; name?: string; seq?: number; block?: { id: string }; what?: string; prefix?: string; vm?: string; why?: string };
  return o.id ?? o.seq ?? o.name ?? (o.block ? o.block.id + o.what : `${o.vm ?? o.prefix} ${o.why ?? ''}`);
}

/** A list that is read page by page. It is made while a component is, and ends with it. */
export class Paged<T> {
  items = $state.raw<T[]>([]);
  total = $state<number | undefined>(undefined);
  next = $state<string | null>(null);
  error = $state.raw<ApiError | null>(null);
  /** The first page came. */
  loaded = $state(false);
  busy = $state(false);
  private query: Query = {};
  private ctl: AbortController | null = null;
  private readonly again = new Again(async () => {
    if (this.busy) this.again.soon();
    else await this.read(undefined, Math.min(1000, Math.max(this.size, this.items.length)));
  }, 2_000); // a node reads, and a page draws, up to a thousand rows

  /** since grows with each change of what the list is of. */
  constructor(private readonly path: string, private readonly size: number, since: () => number) {
    onChange(since, () => this.soon());
    $effect(() => () => {
      this.again.stop();
      this.ctl?.abort();
    });
  }

  /** Starts anew with other filters. */
  async load(query: Query): Promise<void> {
    this.query = query;
    this.loaded = untrack(() => this.loaded) && untrack(() => this.items.length) > 0;
    await this.read(undefined, this.size);
  }

  /** Reads again what is shown, for example after an event. */
  soon(): void {
    this.again.soon();
  }

  async more(): Promise<void> {
    if (this.next && !this.busy) await this.read(this.next, this.size);
  }

  /** What is the same as before stays the same object: then nothing is drawn again for it. */
  private kept(read: T[]): T[] {
    const before = new Map(this.items.map((x) => [keyOf(x), x]));
    return read.map((x) => {
      const was = before.get(keyOf(x));
      return was !== undefined && JSON.stringify(was) === JSON.stringify(x) ? was : x;
    });
  }

  /** What moved from one page to the next meanwhile comes twice. */
  private joined(more: T[]): T[] {
    const known = new Set(this.items.map(keyOf));
    return [...this.items, ...more.filter((x) => !known.has(keyOf(x)))];
  }

  private async read(cursor: string | undefined, limit: number): Promise<void> {
    this.ctl?.abort();
    const ctl = (this.ctl = new AbortController());
    this.busy = true;
    try {
      const page = await get<Page<T>>(this.path, { ...this.query, limit, cursor }, { signal: ctl.signal });
      const items = this.kept(page.items);
      this.items = cursor ? this.joined(items) : items;
      this.next = page.next;
      this.total = page.total;
      this.error = null;
      this.loaded = true;
    } catch (e) {
      if (ctl.signal.aborted) return;
      this.error = e as ApiError;
      this.loaded = true;
    } finally {
      if (this.ctl === ctl) this.busy = false;
    }
  }
}
