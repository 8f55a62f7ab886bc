import { fromField } from './time';
import type { BlockRequest, Direction, Kind, Target } from './types';

/** What the block dialog holds. */
export interface BlockForm {
  target: Target | undefined;
  kind: Kind;
  direction: Direction;
  ports: string;
  rate: string;
  rateUnit: 'mbit' | 'kbit' | 'pps';
  redirectTo: string;
  reason: string;
  note: string;
  start: 'now' | '1h' | 'at';
  startAt: string;
  end: 'never' | '1h' | '6h' | '1d' | '7d' | 'at';
  endAt: string;
  confirmWithin: string;
  force: boolean;
}

export const reasons = ['abuse', 'attack', 'unpaid', 'maintenance', 'legal', 'manual'];

export function emptyForm(target: Target | undefined, reason: string): BlockForm {
  return {
    target, kind: 'drop', direction: 'both', ports: '', rate: '10', rateUnit: 'mbit', redirectTo: '', reason, note: '',
    start: 'now', startAt: '', end: 'never', endAt: '', confirmWithin: '', force: false,
  };
}

/** The request of a form; null while something is missing. */
export function requestOf(f: BlockForm): BlockRequest | null {
  if (!f.target || !f.reason) return null;
  const r: BlockRequest = { target: f.target, kind: f.kind, direction: f.direction, reason: f.reason };
  if (f.note.trim()) r.note = f.note.trim();
  if (f.kind === 'ports') {
    r.ports = f.ports.split(/[\s,]+/).filter(Boolean);
    if (!r.ports.length) return null;
  }
  if (f.kind === 'limit') {
    const n = Number(f.rate);
    if (!(n > 0)) return null;
    r.rate = f.rateUnit === 'pps' ? { packets_per_second: Math.round(n) } : { bits_per_second: Math.round(n * (f.rateUnit === 'mbit' ? 1e6 : 1e3)) };
  }
  if (f.kind === 'redirect' && f.redirectTo.trim()) r.redirect_to = f.redirectTo.trim();
  if (f.start === '1h') r.starts_at = new Date(Math.ceil((Date.now() + 3_600_000) / 60_000) * 60_000).toISOString();
  if (f.start === 'at') {
    r.starts_at = fromField(f.startAt);
    if (!r.starts_at) return null;
  }
  if (f.end === 'at') {
    r.ends_at = fromField(f.endAt);
    if (!r.ends_at) return null;
  } else if (f.end !== 'never') {
    r.duration = f.end;
  }
  if (f.confirmWithin) r.confirm_within = f.confirmWithin;
  if (f.force) r.force = true;
  return r;
}
