import { untrack } from 'svelte';
import { Again } from './again';

/** When a Live or a list is read again. */
export interface Changes {
  /** What is read, an id for example: read at once when it is another. */
  of?: () => unknown;
  /** Grows with each change: read soon after. */
  since: () => number;
  /** Read also after so many ms without a change, while the page is in sight: what changes without an event. */
  everyMs?: number;
}

/** Something that a page shows as it is now. It is made while a component is, and ends with it. */
export class Live<T> {
  value = $state.raw<T | null>(null);
  error = $state.raw<unknown>(null);
  private again: Again | null = null;

  constructor(private readonly read: (signal: AbortSignal) => Promise<T>, when: Changes) {
    $effect(() => {
      when.of?.();
      const ctl = new AbortController();
      const again = (this.again = new Again(() => this.load(ctl.signal)));
      untrack(() => void again.now());
      const timer = when.everyMs ? setInterval(() => !document.hidden && again.soon(), when.everyMs) : 0;
      return () => {
        clearInterval(timer);
        again.stop();
        ctl.abort();
      };
    });
    onChange(when.since, () => this.soon());
  }

  soon(): void {
    this.again?.soon();
  }

  private async load(signal: AbortSignal): Promise<void> {
    try {
      const value = await this.read(signal);
      if (signal.aborted) return;
      this.value = value;
      this.error = null;
    } catch (e) {
      if (!signal.aborted) this.error = e;
    }
  }
}

/** Calls f whenever the number is another than before. */
export function onChange(since: () => number, f: () => void): void {
  let seen = untrack(since);
  $effect(() => {
    const now = since();
    if (now === seen) return;
    seen = now;
    untrack(f);
  });
}
