export interface GradualOptions {
  /** So many rows appear at once when nothing was shown, and so many in each frame from then on. */
  first?: number;
  step?: number;
  /** At least so long between two states that are shown, in milliseconds. The first change after that is shown at once. */
  pace?: number;
}

/**
 * Rows that follow a list without long frames, however much of it changes: what has left it goes at once, what is new comes a few rows in
 * each frame. With a pace, a list that changes faster than anybody can read is shown as it is at times. It is made while a component is, and
 * ends with it.
 */
export class Gradual<T> {
  /** What to show now: items of the list, in its order. */
  rows = $state.raw<T[]>([]);
  private shown: T[] = [];
  private list: T[] = [];
  private begun = -Infinity;
  private timer = 0;
  private frame = 0;
  private readonly o: Required<GradualOptions>;

  constructor(list: () => T[], private readonly key: (x: T) => unknown, o: GradualOptions = {}) {
    this.o = { first: 25, step: 6, pace: 0, ...o };
    $effect.pre(() => this.follow(list()));
    $effect(() => () => {
      clearTimeout(this.timer);
      cancelAnimationFrame(this.frame);
    });
  }

  private follow(list: T[]): void {
    this.list = list;
    if (this.timer || this.frame) return;
    const wait = this.begun + this.o.pace - performance.now();
    if (wait > 0) this.timer = window.setTimeout(() => this.begin(), wait);
    else this.begin();
  }

  private begin(): void {
    this.timer = 0;
    this.begun = performance.now();
    this.go(this.shown.length ? this.o.step : this.o.first);
  }

  private go(most: number): void {
    this.frame = 0;
    if (document.hidden) most = Infinity; // there are no frames, and nobody waits for one
    const known = new Set(this.shown.map(this.key));
    const all = this.list;
    const rows = all.filter((x) => known.has(this.key(x)) || most-- > 0);
    this.rows = this.shown = rows;
    if (rows.length < all.length) this.frame = requestAnimationFrame(() => this.go(this.o.step));
  }
}
