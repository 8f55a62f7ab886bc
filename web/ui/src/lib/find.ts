import { get } from './api';
import { t } from './i18n.svelte';
import { looksLikePrefix, nameOf, short } from './text';
import type { SearchResult, Target, VM } from './types';

/** One thing that was found. */
export interface Hit {
  kind: 'vm' | 'prefix' | 'account' | 'list' | 'node' | 'block';
  id: string;
  name: string;
  hint: string;
  held: boolean;
}

function vmHit(v: VM): Hit {
  const hint = [v.addresses.slice(0, 2).map(short).join(', '), v.owner].filter(Boolean).join(' · ');
  return { kind: 'vm', id: v.id, name: v.name || v.id, hint, held: v.blocked };
}

/** Finds VMs, addresses, nodes, lists and accounts by any part. */
export async function find(q: string, signal?: AbortSignal): Promise<Hit[]> {
  const r = await get<SearchResult>('/v1/search', { q, limit: 8 }, signal ? { signal } : {});
  return [
    ...r.blocks.map((b): Hit => ({ kind: 'block', id: b.id, name: b.id, hint: [nameOf(b), b.reason].join(' · '), held: b.state === 'active' })),
    ...r.vms.map(vmHit),
    ...r.addresses.map((a): Hit => ({ kind: 'prefix', id: a.prefix, name: short(a.prefix), hint: a.vms.join(', '), held: a.blocks.length > 0 })),
    ...r.accounts.map((a): Hit => ({ kind: 'account', id: a.id, name: a.id, hint: t().map.vms(String(a.vms)), held: false })),
    ...r.lists.map((l): Hit => ({ kind: 'list', id: l.name, name: l.name, hint: '', held: false })),
    ...r.nodes.map((n): Hit => ({ kind: 'node', id: n.id, name: n.name || n.id, hint: n.name && n.name !== n.id ? n.id : '', held: false })),
  ];
}

/** What was typed or chosen as the target of a block. */
export function asTarget(h: Hit): Target | null {
  switch (h.kind) {
    case 'vm':
      return { vm: h.id };
    case 'prefix':
      return { prefix: h.id };
    case 'account':
      return { account: h.id };
    case 'list':
      return { list: h.id };
    default:
      return null;
  }
}

/** The targets for a block that fit what was typed; an address or prefix itself comes first. */
export async function findTargets(q: string, signal?: AbortSignal): Promise<Hit[]> {
  const hits = (await find(q, signal)).filter((h) => asTarget(h));
  if (looksLikePrefix(q) && !hits.some((h) => h.kind === 'prefix' && short(h.id) === short(q))) {
    hits.unshift({ kind: 'prefix', id: q, name: q, hint: '', held: false });
  }
  return hits;
}
