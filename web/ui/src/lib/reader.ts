export interface Reading {
  /** Reads, shows what came, and returns the log index that it is of. Fails if nothing came. */
  read(): Promise<number>;
  /** What was read last is new enough. */
  current(): void;
  failed(e: unknown): void;
}

const soonMs = 300;
const gapMs = 2_000;
const longestMs = 10_000;

/**
 * Keeps what is read as new as what is known to have changed. One reading at a time: soon after a change, every 2 s at
 * most. One that failed, or whose answer is of before the change (it began earlier, or the node was just started and has not
 * caught up), is followed by another.
 */
export class Reader {
  /** Log index that what is shown must have at least. */
  wanted = 0;
  private have = -1;
  private timer = 0;
  private due = 0;
  private busy = false;
  private began = -gapMs;
  private failures = 0;
  /** Grows when what is being read does not count any more. */
  private era = 0;

  constructor(private readonly h: Reading) {}

  /** Something changed at this log index. */
  want(index: number): void {
    if (index > this.wanted) this.wanted = index;
    if (this.have < this.wanted) this.plan(Math.max(performance.now() + soonMs, this.began + gapMs));
  }

  /** Reads now, whatever was read or wanted before. */
  anew(index: number): void {
    this.era++;
    this.wanted = index;
    this.have = -1;
    this.failures = 0;
    this.plan(performance.now());
  }

  stop(): void {
    this.era++;
    this.have = Infinity;
    clearTimeout(this.timer);
    this.timer = 0;
  }

  private plan(at: number): void {
    if (this.busy || (this.timer && this.due <= at)) return; // the end of a reading plans the next
    clearTimeout(this.timer);
    this.due = at;
    this.timer = window.setTimeout(() => void this.run(), at - performance.now());
  }

  private async run(): Promise<void> {
    const era = this.era;
    this.timer = 0;
    this.busy = true;
    this.began = performance.now();
    try {
      const index = await this.h.read();
      if (era === this.era) {
        this.failures = 0;
        this.have = index;
        if (index >= this.wanted) this.h.current();
      }
    } catch (e) {
      if (era === this.era) {
        this.failures++;
        this.have = -1;
        this.h.failed(e);
      }
    } finally {
      this.busy = false;
      if (era !== this.era) this.began = -gapMs;
      if (this.have < this.wanted) {
        this.plan(Math.max(performance.now() + (era === this.era ? soonMs : 0), this.began + Math.min(gapMs * 2 ** this.failures, longestMs)));
      }
    }
  }
}
