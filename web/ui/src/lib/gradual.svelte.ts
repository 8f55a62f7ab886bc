export interface GradualOptions {
  /** What is new among so many rows at the top, which are in sight, comes at once; of the others so many come in each frame. */
  first?: number;
  step?: number;
  /** At least so long between two states that are shown, in milliseconds. The first change after that is shown at once. */
  pace?: number;
}

/**
 * Rows that follow a list without long frames, however much of it changes: what has left it goes at once, what is new comes at once
 * at its top and a few rows in each frame below. With a pace, a list that changes faster than anybody can read is shown as it is at times. It is made while a component is, and
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
    this.o = { first: 16, step: 5, pace: 0, ...o };
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
    this.go();
  }

  private go(): void {
    this.frame = 0;
    let most = document.hidden ? Infinity : this.o.step; // a hidden page has no frames
    const known = new Set(this.shown.map(this.key));
    const all = this.list;
    const rows = all.filter((x, i) => i < this.o.first || known.has(this.key(x)) || most-- > 0);
    this.rows = this.shown = rows;
    if (rows.length < all.length) this.frame = requestAnimationFrame(() => this.go());
  }
}
