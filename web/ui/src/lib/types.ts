// What /v1 answers; docs/openapi.json is the reference. Times are RFC 3339 texts.

export type Scope = 'admin' | 'operator' | 'billing' | 'viewer' | 'metrics';

export interface Session {
  id: string;
  user: string;
  scope: Scope;
  from: string;
  created_at: string;
  last_used: string;
  expires_at: string;
  idle: string;
  expired?: boolean;
  current?: boolean;
}

export interface Whoami {
  actor: string;
  scope: Scope;
  session?: Session;
  node?: string;
  version?: string;
  fleet?: string;
  epoch?: number;
  may?: string[];
}

export interface NodeProblem {
  node: string;
  code: string;
  severity: 'critical' | 'warning';
  since?: string;
  text: string;
}

export interface Counts {
  nodes: number;
  alive: number;
  vms: number;
  lost_vms: number;
  blocks: number;
  active_blocks: number;
  pending_blocks: number;
  guards: number;
}

export interface Status {
  node: string;
  leader: string;
  quorum: boolean;
  term: number;
  index: number;
  commit_index: number;
  enforced_index: number;
  node_enforced_index: number;
  state_hash: string;
  age_ms: number;
  caught_up: boolean;
  version: string;
  counts: Counts;
  problems: NodeProblem[];
}

export interface Certificate {
  serial: number;
  not_after: string;
  confirmed: boolean;
}

export interface Node {
  id: string;
  name: string;
  addresses: string[];
  role: 'leader' | 'voter' | 'follower';
  voter: boolean;
  leader: boolean;
  healthy: boolean;
  applied_index: number;
  enforced_index: number;
  version: string;
  format?: number;
  vms: number;
  revision: number;
  last_heard?: string;
  problem?: string;
  clock_offset_ms?: number;
  address?: string;
  gossip?: string;
  api?: string;
  zone?: string;
  state?: 'active' | 'drained' | 'retired';
  joined_at?: string;
  certificate?: Certificate;
}

export type VMState = 'declared' | 'running' | 'migrating' | 'stopped' | 'lost';

export interface NIC {
  mac: string;
  tap: string;
  addresses: string[];
  /** Absent: its node did not say. */
  network?: string;
  enforceable: boolean;
}

export interface Move {
  at: string;
  index: number;
  type: string;
  from?: string;
  node?: string;
  destination?: string;
  state?: string;
}

export interface VM {
  id: string;
  name: string;
  kind: string;
  node: string;
  destination?: string;
  owner: string;
  state: VMState;
  epoch: number;
  revision: number;
  nics: NIC[];
  addresses: string[];
  declared: string[];
  blocked: boolean;
  blocks: string[];
  sighting?: { node: string; phase: string; epoch: number; at: string };
  migration?: Migration;
  source_guard: 'on' | 'off' | 'inherit';
  guarded_source?: { node?: string; macs: boolean; addresses: boolean; why?: string; dropped: { packets: number; bytes: number } };
  do_not_block_until?: string;
  holds?: Block[];
  pending?: Block[];
  history?: Move[];
  history_since?: number;
}

export type MigrationPhase = 'arming' | 'armed' | 'live' | 'settled' | 'aborted';

export interface Migration {
  phase: MigrationPhase;
  from: string;
  to: string;
  cold?: boolean;
  started_at: string;
  changed_at: string;
}

export interface Incident {
  node: string;
  code: string;
  severity: 'critical' | 'warning';
  text: string;
  at: string;
  lasted_ms: number;
  times: number;
}

export interface Target {
  vm?: string;
  prefix?: string;
  account?: string;
  list?: string;
}

export type Kind = 'drop' | 'reject' | 'limit' | 'ports' | 'redirect';
export type Direction = 'both' | 'in' | 'out';
export type BlockState = 'pending' | 'active' | 'lifted' | 'ended';

export interface Rate {
  bits_per_second?: number;
  packets_per_second?: number;
}

export interface Port {
  protocol: string;
  from?: number;
  to?: number;
}

export interface Counters {
  packets: number;
  bytes: number;
}

export interface Receipt {
  node: string;
  index: number;
  at: string;
}

export interface Unconfirmed {
  node: string;
  since: string;
  why?: string;
}

export interface Block {
  id: string;
  target: Target;
  vm_name?: string;
  reason: string;
  note: string;
  actor: string;
  kind: Kind;
  direction: Direction;
  rate?: Rate;
  ports?: Port[];
  redirect_to?: string;
  state: BlockState;
  index: number;
  revision: number;
  created_at: string;
  starts_at?: string;
  ends_at?: string;
  confirm_by?: string;
  started_at?: string;
  since?: string;
  lifted_at?: string;
  lifted_by?: string;
  counters?: Counters;
  receipts?: Receipt[];
  unconfirmed?: Unconfirmed[];
}

export interface BlockRequest {
  target: Target;
  kind?: Kind;
  direction?: Direction;
  rate?: Rate;
  ports?: string[];
  redirect_to?: string;
  reason?: string;
  note?: string;
  starts_at?: string;
  ends_at?: string;
  duration?: string;
  confirm_within?: string;
  force?: boolean;
}

export interface BlockPatch {
  starts_at?: string | null;
  ends_at?: string | null;
  note?: string | null;
  confirm?: boolean;
}

export interface Due {
  at: string;
  what: 'start' | 'end' | 'unconfirmed';
  block: Block;
}

export interface Receipts {
  index: number;
  complete: boolean;
  receipts: Receipt[];
  unconfirmed: Unconfirmed[];
  enforced_index: number;
}

export interface Impact {
  vms: string[];
  count_vms: number;
  nodes: string[];
  addresses: number;
  guards: { prefix: string; why: string }[];
  overlaps: Block[];
}

export interface Outcome {
  status: number;
  problem?: Problem;
  block?: Block;
}

export interface Preview {
  would: Outcome;
  impact?: Impact;
}

export interface BulkResult extends Outcome {
  index: number;
  line: number;
}

export interface FieldError {
  location: string;
  message: string;
  value?: unknown;
}

export interface Problem {
  type: string;
  title: string;
  status: number;
  detail: string;
  code: string;
  instance?: string;
  errors?: FieldError[];
}

export interface Page<T> {
  items: T[];
  next: string | null;
  total?: number;
}

export interface Guard {
  prefix?: string;
  vm?: string;
  note: string;
  actor: string;
  revision: number;
  why?: string;
}

export interface Account {
  id: string;
  do_not_block_until?: string;
  note: string;
  actor: string;
  revision: number;
  vms: number;
  blocks: string[];
}

export interface ListSource {
  url: string;
  interval: string;
  max_bytes: number;
  checked_at?: string;
  last_error?: string;
}

export interface List {
  name: string;
  owner: string;
  note: string;
  origin: string;
  source?: ListSource;
  size: number;
  hash: string;
  loaded_at?: string;
  actor: string;
  revision: number;
  blocks: string[];
}

export interface ListProblem {
  line: number;
  text: string;
  detail: string;
}

export interface ListResult {
  list: List;
  dry_run?: boolean;
  size: number;
  merged: number;
  added: number;
  removed: number;
  guarded: number;
  vms: number;
  skipped: number;
  refused?: string;
  problems: ListProblem[];
  unconfirmed?: string[];
}

export interface Settings {
  max_vms: number;
  max_addresses: number;
  redirect: { title: string; text: string; link: string };
  voters?: number;
  replace_voter_after?: string;
  source_guard?: 'on' | 'off';
  revision: number;
}

export interface ExplainedHold {
  block: string;
  target: Target;
  reason: string;
  kind: string;
  direction: string;
  by: string;
  treats: boolean;
  decides?: boolean;
  started?: boolean;
  since: string;
  counters: Counters;
}

export interface NodeExplanation {
  node: string;
  verdict: 'pass' | 'drop' | 'reject' | 'redirect' | 'limit';
  why: string;
  holds: ExplainedHold[];
  guards?: string[];
  applied_index: number;
  enforced_index: number;
}

export interface SilentNode {
  node: string;
  why: string;
}

export interface Explanation {
  nodes?: NodeExplanation[];
  silent?: SilentNode[];
  vm?: string;
  holds?: ExplainedHold[];
  guards?: string[];
}

export interface Token {
  name: string;
  scope: Scope;
  expires_at?: string;
  expired?: boolean;
  created_at: string;
  actor: string;
  revision: number;
}

export interface User {
  name: string;
  scope: Scope;
  created_at: string;
  actor: string;
  revision: number;
}

export interface JoinToken {
  id: string;
  node?: string;
  zone?: string;
  state: 'open' | 'used' | 'expired';
  created_at: string;
  expires_at: string;
  actor: string;
  used_by?: string;
  used_at?: string;
}

export interface NewJoinToken extends JoinToken {
  token: string;
  address: string;
}

export interface Fleet {
  id: string;
  epoch: number;
  since?: { at: string; node: string; how: 'recover' | 'restore'; settled: boolean };
  formed_at: string;
  authorities: { sha256: string; state: string; not_after: string; certificate: string }[];
  awaiting: string[];
  gossip_keys: { id: string; state: string }[];
  revision: number;
}

export interface AuditRecord {
  seq: number;
  prev: string;
  index: number;
  time: string;
  actor?: string;
  from?: string;
  action: string;
  object?: string;
  asked?: unknown;
  before?: unknown;
  after?: unknown;
  outcome: string;
}

export interface AuditCheck {
  node: string;
  ok: boolean;
  problem?: string;
  records: number;
  first: number;
  last: number;
  head: string;
  written: number;
  gaps?: { first: number; last: number }[];
}

export interface SearchResult {
  vms: VM[];
  addresses: { prefix: string; vms: string[]; blocks: string[] }[];
  nodes: { id: string; name: string }[];
  lists: { name: string; size: number; note: string }[];
  accounts: { id: string; vms: number; blocks: string[] }[];
  blocks: Block[];
}

export interface Drops {
  step: number;
  from: string;
  points: number;
  /** What was dropped for one reason or block on one node (empty: on the nodes beyond the first 16). Without drops there is none. */
  series: { node: string; reason?: string; block?: string; packets: (number | null)[]; bytes: (number | null)[] }[];
  /** From when on a node knows. */
  known?: { node: string; from: string }[];
  silent?: SilentNode[];
}

export interface NodeCounts {
  id: string;
  vms: number;
  running: number;
  migrating: number;
  stopped: number;
  lost: number;
  held: number;
  arriving?: number;
  pending?: number;
}

export interface FleetEvent {
  /** Given out by the page as events come: several can be of one index. */
  n?: number;
  index: number;
  at: string;
  type: string;
  actor: string;
  block?: Block;
  vm?: VM;
  node?: Node;
  guard?: Guard;
  account?: Account;
  settings?: Settings;
  list?: List;
  token?: Token;
  user?: User;
  session?: Session;
  fleet?: Fleet;
  join_token?: JoinToken;
  incident?: Incident;
}

/** What /v1/events?live=true says of the node and the members that changed. */
export interface Standing {
  at: string;
  node: string;
  version?: string;
  fleet?: string;
  epoch?: number;
  index: number;
  commit_index?: number;
  leader: string;
  term?: number;
  quorum: boolean;
  caught_up: boolean;
  age_ms: number;
  nodes?: (Partial<Node> & { id: string; alive?: boolean })[];
}
