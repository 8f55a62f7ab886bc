import { language, t } from './i18n.svelte';
import { local } from './time';
import type { FieldError } from './types';

/** A stretch of what the API says, or a time in it (RFC 3339). */
export type Part = { text: string; at?: undefined } | { at: string; text?: undefined };

const time = /\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)/g;

/** Takes a text apart at its times. */
export function parts(text: string): Part[] {
  const out: Part[] = [];
  let from = 0;
  for (const m of text.matchAll(time)) {
    if (m.index > from) out.push({ text: text.slice(from, m.index) });
    out.push({ at: m[0].replace(' ', 'T') });
    from = m.index + m[0].length;
  }
  if (from < text.length) out.push({ text: text.slice(from) });
  return out;
}

/** The same with local times, for where only text can be. */
export function plain(text: string): string {
  return text.replace(time, (at) => local(at.replace(' ', 'T'), language.lang));
}

/** What people call a field of a request. */
function label(field: string): string {
  const x = t();
  const last = field.replace(/\[\d+\]/g, '').split('.').pop() ?? field;
  const names: Record<string, string> = {
    target: x.blocks.target, prefix: x.targets.prefix, vm: x.targets.vm, account: x.targets.account, list: x.targets.list, owner: x.vms.owner, addresses: x.vms.columns.addresses,
    kind: x.block.kind, direction: x.block.direction, ports: x.block.ports, rate: x.block.rate, reason: x.block.reason, note: x.block.note, redirect_to: x.block.redirectTo,
    starts_at: x.block.start, ends_at: x.block.end, duration: x.block.end, confirm_within: x.block.confirmWithin, force: x.block.force, name: x.access.name, user: x.login.user,
    password: x.login.password, new: x.access.new, old: x.access.old, scope: x.user.scope, expires_at: x.access.expires, zone: x.nodes.zone, ttl: x.join.ttl, interval: x.lists.interval, url: 'URL',
    src: x.explain.src, dst: x.explain.dst, port: x.explain.port, add: x.lists.add, remove: x.lists.removeEntries,
    max_vms: x.settings.maxVMs, max_addresses: x.settings.maxAddresses, redirect_title: x.settings.title, redirect_text: x.settings.text, redirect_link: x.settings.link,
  };
  return names[last] ?? last.replaceAll('_', ' ');
}

const predicate = /^(is|are|was|has|have|must|needs?|wants?|can|can't|does|may|gives?|names?|expected|unexpected|validation)\b/;

/** A complaint about a field: it has a subject of its own, or gets the field's. */
export function aboutField(f: Pick<FieldError, 'location' | 'message'>): string {
  return predicate.test(f.message) && f.location ? `${label(f.location)}: ${f.message}` : f.message;
}

/** A refusal without the name of the field in front, and without what only programs can do about it. */
export function refusal(code: string, detail: string): string {
  let s = detail;
  const m = /^(?:body\.)?([a-z_]+(?:\.[a-z_]+|\[\d+\])*): (?=\S)/.exec(s);
  if (m) s = aboutField({ location: m[1]!, message: s.slice(m[0].length) });
  if (code === 'too_many') s = s.split('; ')[0]!;
  return sentence(s);
}

/** Begins with a capital letter and ends with a point. */
function sentence(s: string): string {
  return s.charAt(0).toUpperCase() + s.slice(1) + (/[.!?…]$/.test(s) ? '' : '.');
}
