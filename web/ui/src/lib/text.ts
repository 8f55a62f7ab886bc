import type { Block, Port, Rate, Target } from './types';

const hidden = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

/**
 * Names come from strangers. Control, zero-width and direction characters are written out, and what is too long is cut
 * in the middle; the rest is isolated by <bdi> where it is shown.
 */
export function visible(s: string, max = 80): string {
  const t = s.length > 4 * max ? s.slice(0, 2 * max) + '…' + s.slice(-max) : s;
  const out = t.replace(hidden, (c) => '\\u' + c.charCodeAt(0).toString(16).padStart(4, '0'));
  return out.length <= max ? out : out.slice(0, Math.ceil(max * 0.6)) + '…' + out.slice(-Math.floor(max * 0.3));
}

/** The name or id of a target, and which kind it is. */
export function targetOf(t: Target): { kind: 'vm' | 'prefix' | 'account' | 'list'; id: string } {
  if (t.vm) return { kind: 'vm', id: t.vm };
  if (t.account) return { kind: 'account', id: t.account };
  if (t.list) return { kind: 'list', id: t.list };
  return { kind: 'prefix', id: t.prefix ?? '' };
}

/** What a block is called: the VM by its name, or else its target. */
export function nameOf(b: Pick<Block, 'target' | 'vm_name'>): string {
  return b.vm_name || short(targetOf(b.target).id);
}

/** A single address without its /32 or /128. */
export function short(prefix: string): string {
  return prefix.replace(/^([0-9.]+)\/32$/, '$1').replace(/^([0-9a-f:]+)\/128$/i, '$1');
}

export function portText(p: Port): string {
  if (!p.from) return p.protocol;
  return p.to && p.to !== p.from ? `${p.protocol}/${p.from}-${p.to}` : `${p.protocol}/${p.from}`;
}

export function rateText(r: Rate): string {
  if (r.packets_per_second) return `${si(r.packets_per_second)} p/s`;
  return `${si(r.bits_per_second ?? 0)}bit/s`;
}

/** What a block does, in few signs. */
export function does(b: Pick<Block, 'rate' | 'ports' | 'redirect_to'>): string {
  if (b.rate) return rateText(b.rate);
  if (b.ports?.length) return b.ports.map(portText).join(', ');
  return b.redirect_to ?? '';
}

/** 1234567 -> 1.23 M */
export function si(n: number): string {
  if (n < 1000) return String(Math.round(n * 10) / 10) + ' ';
  const e = Math.min(5, Math.floor(Math.log10(n) / 3));
  return `${Number((n / 1000 ** e).toPrecision(3))} ${' kMGTP'[e]}`;
}

export function bytes(n: number): string {
  return si(n) + 'B';
}

// To make one takes longer than to format a thousand numbers.
const numbers = new Map<string, Intl.NumberFormat>();

export function num(n: number, lang: string): string {
  let f = numbers.get(lang);
  if (!f) numbers.set(lang, (f = new Intl.NumberFormat(lang)));
  return f.format(n);
}

/** Looks like an address or a prefix. */
export function looksLikePrefix(s: string): boolean {
  return /^[0-9]{1,3}(\.[0-9]{1,3}){3}(\/[0-9]{1,2})?$/.test(s) || (/^[0-9a-f:.]+(\/[0-9]{1,3})?$/i.test(s) && s.includes(':') && s.split(':').length > 2 && !/^([0-9a-f]{2}:){5}[0-9a-f]{2}$/i.test(s));
}
