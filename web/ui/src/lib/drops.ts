import { get } from './api';
import { t } from './i18n.svelte';
import type { Drops } from './types';

/** Rows for a plot: the first is time in unix seconds, then packets per second for each label. */
export interface Plotted {
  labels: string[];
  data: (number | null)[][];
  silent: string[];
}

/** Reads drops and adds them up by reason, node, or both. */
export async function readDrops(p: string, since: string, by: 'reason' | 'node' | 'both', more: Record<string, string>, signal?: AbortSignal): Promise<Plotted> {
  const d = await get<Drops>(p, { since, ...more }, signal ? { signal } : {});
  const t0 = Date.parse(d.from) / 1000;
  const times = Array.from({ length: d.points }, (_, i) => t0 + i * d.step);
  const sums = new Map<string, (number | null)[]>();
  for (const s of d.series) {
    const reason = s.reason ? (t().reasons[s.reason] ?? s.reason) : (s.block ?? '');
    const node = s.node || '…';
    const label = by === 'node' || !reason ? node : by === 'reason' ? reason : `${node} · ${reason}`;
    let row = sums.get(label);
    if (!row) sums.set(label, (row = new Array<number | null>(d.points).fill(null)));
    s.packets.forEach((v, i) => {
      if (v !== null) row[i] = (row[i] ?? 0) + v;
    });
  }
  const labels = [...sums.keys()].sort();
  return { labels, data: [times, ...labels.map((l) => sums.get(l)!)], silent: (d.silent ?? []).map((s) => s.node) };
}
