import { pause } from './api';
import type { FleetEvent, Standing } from './types';

export type Link = 'connecting' | 'live' | 'lost';

export interface EventHandlers {
  /** All events of one read, in order. */
  events(batch: FleetEvent[]): void;
  standing(s: Standing): void;
  /** The feed does not reach back to where we were, or the fleet has a new epoch (restored): read everything again, as of this log index. */
  reset(index: number, restored: boolean): void;
  link(state: Link, error?: string): void;
  /** The session has ended. */
  unauthorized(): void;
}

const silentAfterMs = 8_000;

/**
 * Follows /v1/events until the signal fires. Resumes after the last index whose events all came, so that none is
 * missed; reconnects with growing pauses (0.25 to 5 s); takes a stream that is silent for 8 s for dead: the server
 * says something every 3 s.
 */
export class EventStream {
  /** Log index up to which every event was handed on; undefined before the first connection. */
  lastIndex: number | undefined;
  private epoch: number | undefined;

  constructor(private readonly h: EventHandlers) {}

  async run(signal: AbortSignal): Promise<void> {
    let wait = 250;
    while (!signal.aborted) {
      this.h.link('connecting');
      const began = performance.now();
      let why = '';
      try {
        await this.once(signal);
      } catch (e) {
        why = e instanceof Error ? e.message : String(e);
      }
      if (signal.aborted) return;
      this.h.link('lost', why);
      wait = performance.now() - began > 10_000 ? 250 : Math.min(wait * 2, 5_000);
      await pause(wait * (0.7 + 0.6 * Math.random()), signal);
    }
  }

  private async once(signal: AbortSignal): Promise<void> {
    const ctl = new AbortController();
    const abort = () => ctl.abort();
    signal.addEventListener('abort', abort);
    let timer = setTimeout(abort, silentAfterMs);
    const alive = () => {
      clearTimeout(timer);
      timer = setTimeout(abort, silentAfterMs);
    };
    try {
      const headers: Record<string, string> = { Accept: 'text/event-stream' };
      if (this.lastIndex !== undefined) headers['Last-Event-ID'] = String(this.lastIndex);
      const res = await fetch('/v1/events?live=true', { headers, signal: ctl.signal, cache: 'no-store', credentials: 'same-origin' });
      if (res.status === 401 || res.status === 403) {
        this.h.unauthorized();
        throw new Error(`HTTP ${res.status}`);
      }
      if (!res.ok || !res.body) throw new Error(`HTTP ${res.status}`);
      this.h.link('live');
      const reader = res.body.getReader();
      const text = new TextDecoder();
      let rest = '';
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        alive();
        rest += text.decode(value, { stream: true });
        const end = rest.lastIndexOf('\n\n');
        if (end < 0) continue;
        this.take(rest.slice(0, end));
        rest = rest.slice(end + 2);
      }
    } finally {
      clearTimeout(timer);
      signal.removeEventListener('abort', abort);
      ctl.abort();
    }
  }

  private take(text: string): void {
    let batch: FleetEvent[] = [];
    let last = this.lastIndex; // is kept once what came before it was handed on
    const hand = () => {
      if (batch.length) this.h.events(batch);
      batch = [];
      this.lastIndex = last;
    };
    for (const block of text.split('\n\n')) {
      let id = '';
      let type = '';
      let data = '';
      for (const line of block.split('\n')) {
        if (line.startsWith('id: ')) id = line.slice(4);
        else if (line.startsWith('event: ')) type = line.slice(7);
        else if (line.startsWith('data: ')) data += line.slice(6);
      }
      if (type === 'reset') {
        batch = [];
        this.lastIndex = last = Number(id);
        this.h.reset(last, false);
        continue;
      }
      if (data) {
        if (type === 'standing') {
          hand();
          this.standing(JSON.parse(data) as Standing);
          last = this.lastIndex;
        } else {
          batch.push(JSON.parse(data) as FleetEvent);
        }
      }
      if (id) last = Number(id);
    }
    hand();
  }

  private standing(s: Standing): void {
    const restored = this.epoch !== undefined && s.epoch !== undefined && this.epoch !== s.epoch;
    this.epoch = s.epoch ?? this.epoch;
    if (restored) {
      this.lastIndex = s.index;
      this.h.reset(s.index, true);
    }
    this.h.standing(s);
  }
}
