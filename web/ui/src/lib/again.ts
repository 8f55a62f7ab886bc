const firstMs = 250;

/**
 * Does something soon after it was asked for: 0.25 s later, once in gapMs at most however often it is asked for, and never twice at a
 * time. What is asked for meanwhile is done after.
 */
export class Again {
  private timer = 0;
  private last = -Infinity;
  private running = false;
  private more = false;
  private stopped = false;

  constructor(private readonly run: () => Promise<unknown>, private readonly gapMs = 1_000) {}

  soon(): void {
    if (this.stopped || this.timer) return;
    if (this.running) {
      this.more = true;
      return;
    }
    this.timer = window.setTimeout(() => void this.now(), Math.max(firstMs, this.last + this.gapMs - performance.now()));
  }

  async now(): Promise<void> {
    clearTimeout(this.timer);
    this.timer = 0;
    this.last = performance.now();
    this.running = true;
    try {
      await this.run();
    } finally {
      this.running = false;
      if (this.more) {
        this.more = false;
        this.soon();
      }
    }
  }

  stop(): void {
    this.stopped = true;
    clearTimeout(this.timer);
  }
}
