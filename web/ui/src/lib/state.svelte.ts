import { Again } from './again';
import { answer, ApiError, get, path, pause, send, whenUnauthorized } from './api';
import { EventStream, type Link } from './events';
import { Reader } from './reader';
import type { Block, Due, FleetEvent, Node, NodeCounts, Page, Receipt, Scope, Standing, Status, VM, Whoami } from './types';

/** Above so many VMs the picture shows counts for each node and no single VMs. */
export const maxDrawn = 3_000;
const maxFeed = 300;
const maxInFlight = 12;
/** At least so long between two times that changes are shown. */
const flushMs = 250;

/** A block change on its way to all kernels. */
export interface InFlight {
  block: Block;
  /** performance.now() when it was first seen. */
  seen: number;
}

type Login = 'unknown' | 'out' | 'in';

/**
 * The live picture of the fleet: one for the page. It reads everything once, then follows the events; changes are
 * gathered and shown once in an animation frame.
 */
class FleetStore {
  login = $state<Login>('unknown');
  who = $state.raw<Whoami | null>(null);
  link = $state<Link>('connecting');
  /** Why the link was lost. */
  linkError = $state('');
  /** Date.now() of the last word from this node. */
  heardAt = $state(Date.now());
  status = $state.raw<Status | null>(null);
  nodes = $state.raw<Node[]>([]);
  /** Nodes that are no longer members are left out. */
  members = $derived(this.nodes.filter((n) => n.state !== 'retired'));
  counts = $state.raw<Map<string, NodeCounts>>(new Map());
  /** All VMs, if there are at most maxDrawn of them. */
  vms = $state.raw<Map<string, VM>>(new Map());
  drawn = $state(false);
  feed = $state.raw<FleetEvent[]>([]);
  inFlight = $state.raw<InFlight[]>([]);
  due = $state.raw<Due[]>([]);
  /** Grows with each event of the kind, standing when a node stands otherwise: pages that show it read it again. */
  rev = $state({ blocks: 0, vms: 0, nodes: 0, standing: 0, lists: 0, access: 0, guards: 0, settings: 0, reset: 0 });
  /** Why this page began anew, until the user has read it: the fleet has another epoch, or its feed did not reach back. */
  restarted = $state<'' | 'restored' | 'gap'>('');
  epoch = $state(0);
  loadError = $state.raw<ApiError | null>(null);
  loaded = $state(false);

  private stop: AbortController | null = null;
  private queue: FleetEvent[] = [];
  private frame = 0;
  private flushTimer = 0;
  private flushed = -flushMs;
  /** Events of VMs that came while a reading is under way: its answer may be older. null: none is. */
  private meanwhile: FleetEvent[] | null = null;
  /** The pages are to read again too. */
  private pagesToo = false;
  private readonly picture = new Reader({
    read: () => this.readPicture(),
    current: () => {
      if (!this.pagesToo) return;
      this.pagesToo = false;
      this.rev.blocks++;
      this.rev.vms++;
      this.rev.nodes++;
      this.rev.lists++;
    },
    failed: (e) => {
      this.meanwhile = null;
      this.loadError = e as ApiError;
    },
  });
  /** Log index of the last event that was shown. */
  private shown = 0;
  /** Log index at the login: events up to it are history. */
  private past = 0;
  private received = 0;

  /** The log index of some seconds ago: what a kernel must have by now. */
  steady = $state(0);
  private indexes: [at: number, index: number][] = [];

  constructor() {
    setInterval(() => this.settle(), 1_000);
    whenUnauthorized(() => this.loggedOut());
  }

  /** Finds out who we are and, if somebody, begins to follow the fleet. */
  async begin(): Promise<void> {
    try {
      const who = await get<Whoami>('/v1/whoami');
      this.who = who;
      this.login = 'in';
      this.follow();
    } catch (e) {
      if (e instanceof ApiError && e.status === 401) this.login = 'out';
      else this.loadError = e as ApiError;
    }
  }

  loggedOut(): void {
    this.stop?.abort();
    this.stop = null;
    this.picture.stop();
    this.login = 'out';
    this.who = null;
    this.loaded = false;
    this.vms = new Map();
    this.feed = [];
    this.inFlight = [];
    this.status = null;
    this.nodes = [];
    this.due = [];
  }

  private follow(): void {
    this.stop?.abort();
    const ctl = (this.stop = new AbortController());
    if (!this.sees('viewer')) {
      this.link = 'live';
      this.loaded = true;
      return; // billing: no events
    }
    let guessed = true;
    const stream: EventStream = new EventStream({
      events: (batch) => {
        this.heard();
        for (const e of batch) e.n = ++this.received;
        this.queue.push(...batch);
        this.schedule();
      },
      standing: (s) => this.stand(s),
      reset: (index, restored) => {
        if (!restored && guessed && !this.feed.length) { // the feed does not reach back so far: nothing was missed
          this.picture.want(index);
          return;
        }
        this.past = Math.min(this.past, index);
        this.shown = 0;
        if (restored) {
          // What happened in the lost time did not happen, and its numbers may mean something else.
          this.queue = [];
          this.feed = [];
          this.inFlight = [];
        }
        if (restored || !this.restarted) this.restarted = restored ? 'restored' : 'gap';
        this.rev.reset++;
        this.readAll(index);
      },
      link: (state, error) => {
        if (state === 'lost') guessed = false;
        if (state === 'live') {
          this.heard();
          if (!this.loaded || this.link !== 'live') this.readAll(Math.max(this.past, stream.lastIndex ?? 0));
        }
        if (state !== 'connecting' || this.link !== 'lost') this.link = state;
        this.linkError = error ?? '';
      },
      unauthorized: () => void this.begin(),
    });
    void this.recent(stream, ctl.signal);
    void this.poll(ctl.signal);
  }

  /** Begins a little before the present, so that the events show what happened last. */
  private async recent(stream: EventStream, signal: AbortSignal): Promise<void> {
    try {
      const s = await get<Status>('/v1/status', undefined, { signal });
      this.status = s;
      this.past = s.index;
      stream.lastIndex = Math.max(0, s.index - 60);
    } catch {
      // It begins with the present.
    }
    await stream.run(signal);
  }

  private heard(): void {
    this.heardAt = Date.now();
  }

  /** The status has counts and problems, which no event has. The nodes come with the stream, but for little of them. */
  private async poll(signal: AbortSignal): Promise<void> {
    for (let round = 1; !signal.aborted; round++) {
      await pause(5_000, signal);
      if (document.hidden || this.link !== 'live' || signal.aborted) continue;
      await (round % 6 ? this.readStatus() : this.readStanding());
    }
  }

  private async readStatus(): Promise<void> {
    try {
      this.status = await get<Status>('/v1/status');
      this.heard();
    } catch {
      // As in readStanding.
    }
  }

  async readStanding(): Promise<void> {
    try {
      await this.readNode();
    } catch {
      // The event stream says that the node is gone, or the next round does it.
    }
  }

  private async readNode(): Promise<void> {
    const [status, nodes] = await Promise.all([get<Status>('/v1/status'), this.readNodes()]);
    this.status = status;
    this.nodes = nodes;
    this.heard();
  }

  private async readNodes(): Promise<Node[]> {
    return (await readPages<Node>('/v1/nodes', {}, 5_000)).items;
  }

  /** Reads everything again, at once and until it is of this log index at least; then the pages do. */
  readAll(index = this.picture.wanted): void {
    this.pagesToo = true;
    this.picture.anew(index);
  }

  /** Reads what a block changes: numbers, what is due, and which VMs are held. Returns the log index of the oldest answer. */
  private async readPicture(): Promise<number> {
    const meanwhile: FleetEvent[] = (this.meanwhile = []);
    const shown = this.shown;
    const [vms, due] = await Promise.all([
      readPages<VM>('/v1/vms', {}, maxDrawn, (total) => total > maxDrawn),
      readPages<Due>('/v1/schedule', {}, 50),
      this.pagesToo ? this.readNode() : this.readStatus(),
    ]);
    const drawn = (vms.total ?? 0) <= maxDrawn;
    const counts = drawn ? null : await get<{ index: number; nodes: NodeCounts[] }>('/v1/overview');
    const index = Math.min(vms.index, due.index, counts?.index ?? Infinity);
    this.loadError = null;
    this.meanwhile = null;
    // What is shown may be newer than the answer. Newer than what was shown when it was asked for, the answer counts: what came
    // since is put on top.
    if (this.login !== 'in' || (this.loaded && index < shown)) return index;
    this.due = due.items;
    this.drawn = drawn;
    if (counts) this.counts = new Map(counts.nodes.map((n) => [n.id, n]));
    if (drawn) {
      const newest = new Map(vms.items.map((v) => [v.id, v]));
      for (const e of meanwhile) if (e.vm && e.index > index) newest.set(e.vm.id, e.vm);
      this.vms = newest;
    }
    this.loaded = true;
    return index;
  }

  private stand(s: Standing): void {
    this.heard();
    if (s.epoch !== undefined) this.epoch = s.epoch;
    if (this.status) {
      this.status = {
        ...this.status, node: s.node, leader: s.leader, quorum: s.quorum, caught_up: s.caught_up, age_ms: s.age_ms,
        index: Math.max(s.index, this.status.index), commit_index: s.commit_index ?? this.status.commit_index, term: s.term ?? this.status.term,
      };
    }
    if (!s.nodes?.length) return;
    this.rev.standing++;
    const news = new Map(s.nodes.map((n) => [n.id, n]));
    this.nodes = this.nodes.map((n) => {
      const x = news.get(n.id);
      if (!x) return n;
      if (x.healthy !== n.healthy) this.reread.soon(); // when it was heard last comes with the node
      const { alive, ...rest } = x;
      const is = { ...n, ...rest };
      if (alive === false) is.healthy = false;
      if (is.leader) is.role = 'leader';
      else is.role = is.voter ? 'voter' : 'follower';
      return is;
    });
    const known = new Set(this.nodes.map((n) => n.id));
    if (s.nodes.some((n) => !known.has(n.id))) void this.readStanding();
    this.landed();
  }

  /** A change is shown in the next frame; when they keep coming, they are every 250 ms. */
  private schedule(): void {
    // A hidden page has no frames, but its events must not pile up.
    if (document.hidden && this.queue.length > 500) this.flush();
    if (this.frame || this.flushTimer) return;
    this.flushTimer = window.setTimeout(() => {
      this.flushTimer = 0;
      this.frame = requestAnimationFrame(() => this.flush());
    }, Math.max(0, this.flushed + flushMs - performance.now()));
  }

  private flush(): void {
    cancelAnimationFrame(this.frame);
    clearTimeout(this.flushTimer);
    this.frame = this.flushTimer = 0;
    this.flushed = performance.now();
    const batch = this.queue;
    this.queue = [];
    if (!batch.length) return;
    let vms: Map<string, VM> | null = null;
    let flight: InFlight[] | null = null;
    let nodes = false;
    for (const e of batch) {
      if (e.index <= this.past) continue; // for the list of events only: what was read is newer
      this.shown = Math.max(this.shown, e.index);
      if (e.vm) {
        this.rev.vms++;
        this.reread.soon();
        this.meanwhile?.push(e);
        if (this.drawn) (vms ??= new Map(this.vms)).set(e.vm.id, e.vm);
        else this.picture.want(e.index);
      }
      if (e.block) {
        this.rev.blocks++;
        this.picture.want(e.index);
        flight = (flight ?? this.inFlight).filter((f) => f.block.id !== e.block!.id);
        if (e.block.state !== 'pending') flight.push({ block: e.block, seen: performance.now() });
      }
      if (e.node || e.fleet) nodes = true;
      if (e.list) {
        this.rev.lists++;
        this.picture.want(e.index);
      }
      if (e.guard) this.rev.guards++;
      if (e.settings) this.rev.settings++;
      if (e.token || e.user || e.session || e.join_token) this.rev.access++;
    }
    const last = batch[batch.length - 1]!;
    if (vms) this.vms = vms;
    if (flight) this.inFlight = flight.slice(-maxInFlight);
    if (nodes) {
      this.rev.nodes++;
      void this.readStanding();
    }
    this.feed = [...batch.slice(-maxFeed).reverse(), ...this.feed].slice(0, maxFeed);
    if (this.status && last.index > this.status.index) this.status = { ...this.status, index: last.index };
    this.landed();
  }

  /** How many VMs each node has, and when it was heard, is read with the nodes. */
  private readonly reread = new Again(() => this.readStanding(), 5_000);

  /** Takes out of inFlight what every healthy node has in its kernel for a while. */
  private landed(): void {
    if (!this.inFlight.length) return;
    const now = performance.now();
    const left = this.inFlight.filter((f) => this.missing(f.block).length > 0 || now - f.seen < 4_000);
    if (left.length !== this.inFlight.length) this.inFlight = left;
  }

  /** Kernels tell what they have once a second: only what is older than that and missing is late. */
  private settle(): void {
    const now = performance.now();
    this.indexes.push([now, this.status?.index ?? 0]);
    // A large fleet is asked less often: once in 10 ms for each of its nodes.
    const then = now - 3_000 - 10 * this.nodes.length;
    while (this.indexes.length > 1 && this.indexes[1]![0] <= then) this.indexes.shift();
    const steady = this.indexes[0]![0] <= then ? this.indexes[0]![1] : 0;
    if (steady !== this.steady) this.steady = steady;
    this.landed();
  }

  nodeName(id: string): string {
    return this.nodes.find((n) => n.id === id)?.name || id;
  }

  /** By how many entries of the log a node's kernel is late. */
  late(n: Node): number {
    return Math.max(0, this.steady - n.enforced_index);
  }

  /** Takes receipts, which are newer than what the nodes said of themselves. */
  receipts(rs: Receipt[]): void {
    const at = new Map(rs.map((r) => [r.node, r.index]));
    if (!this.nodes.some((n) => (at.get(n.id) ?? 0) > n.enforced_index)) return;
    this.nodes = this.nodes.map((n) => ((at.get(n.id) ?? 0) > n.enforced_index ? { ...n, enforced_index: at.get(n.id)! } : n));
    this.landed();
  }

  /** Nodes that do not have the block's last change in their kernel, as far as we know. */
  missing(b: Block): Node[] {
    return this.members.filter((n) => n.enforced_index < b.index);
  }

  sees(scope: Scope): boolean {
    const have = this.who?.scope;
    switch (scope) {
      case 'admin':
        return have === 'admin';
      case 'operator':
        return have === 'admin' || have === 'operator';
      case 'billing':
        return have === 'admin' || have === 'operator' || have === 'billing';
      case 'metrics':
        return !!have; // what everybody may do
      default:
        return have === 'admin' || have === 'operator' || have === 'viewer';
    }
  }

  /** By which scope the caller may block, if it may. */
  get blockScope(): Scope {
    return this.who?.scope === 'billing' ? 'billing' : 'operator';
  }

  /** By which scope the caller may lift or change a block of this reason, if it may. */
  liftScope(reason: string | undefined): Scope {
    return reason === 'unpaid' ? this.blockScope : 'operator';
  }

  /** Whether writes can work now. */
  get writable(): boolean {
    if (!this.sees('viewer')) return true;
    return this.link !== 'lost' && (this.status?.quorum ?? true);
  }
}

/** Items of some pages. */
export interface Items<T> extends Page<T> {
  /** Log index of the oldest page. */
  index: number;
}

/** Reads pages until there is no more, there are max items, or enough says so of how many there are in all. */
export async function readPages<T>(p: string, query: Record<string, string | number | boolean | undefined>, max: number, enough?: (total: number) => boolean): Promise<Items<T>> {
  const out: Items<T> = { items: [], next: null, index: Infinity };
  for (;;) {
    const { data, index } = await answer<Page<T>>(p, { query: { ...query, limit: Math.min(1000, max), cursor: out.next ?? undefined } });
    out.index = Math.min(out.index, index);
    out.items.push(...data.items);
    out.next = data.next;
    if (data.total !== undefined) out.total = data.total;
    if (!data.next || out.items.length >= max || enough?.(data.total ?? 0)) return out;
  }
}

export const fleet = new FleetStore();

export async function logout(everywhere: boolean): Promise<void> {
  await send('POST', path('logout'), undefined, { query: { everywhere: everywhere || undefined } });
  fleet.loggedOut();
}
