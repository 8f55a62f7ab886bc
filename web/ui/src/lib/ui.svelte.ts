import { ApiError } from './api';
import { t } from './i18n.svelte';
import { aboutField, plain, refusal } from './said';
import { fleet } from './state.svelte';
import type { Scope, Target } from './types';

export interface Toast {
  id: number;
  text: string;
  kind: 'ok' | 'bad';
}

/** What lies above the pages: the block dialog and short messages. */
class Ui {
  /** The block dialog is open, on this target if there is one. */
  block = $state.raw<{ target?: Target; label?: string } | null>(null);
  /** The dialog for lifting is open, on this block. */
  lift = $state.raw<{ id: string; reason: string; state: string } | null>(null);
  toasts = $state.raw<Toast[]>([]);
  private next = 1;

  openBlock(target?: Target, label?: string): void {
    this.block = { ...(target ? { target } : {}), ...(label ? { label } : {}) };
  }

  say(text: string, kind: 'ok' | 'bad' = 'ok'): void {
    const id = this.next++;
    this.toasts = [...this.toasts.slice(-3), { id, text, kind }];
    setTimeout(() => this.drop(id), kind === 'ok' ? 5_000 : 12_000);
  }

  drop(id: number): void {
    this.toasts = this.toasts.filter((x) => x.id !== id);
  }

  /** Says what went wrong in a toast. */
  fail(e: unknown): void {
    const { title, todo } = explainError(e);
    if (title) this.say(plain(todo ? `${title} ${todo}` : title), 'bad');
  }
}

export const ui = new Ui();

/** Why the caller can't change anything now; empty if it can. */
export function whyNot(scope: Scope = 'operator'): string {
  if (!fleet.sees(scope)) return t().errors.scope(scope, fleet.who?.scope ?? '');
  if (fleet.link === 'lost') return t().errors.cutOff;
  if (!fleet.writable) return t().errors.noQuorumNow;
  return '';
}

/** An error in words: what happened, and what to do. */
export function explainError(e: unknown): { title: string; todo: string; fields: string[] } {
  const texts = t().errors;
  if (!(e instanceof ApiError)) return { title: String(e), todo: '', fields: [] };
  const fields = (e.problem?.errors ?? []).map(aboutField);
  const known = texts.codes[e.code];
  let title = e.problem ? refusal(e.code, e.detail) : (known?.title ?? e.detail);
  if (title && !/[.!?]$/.test(title)) title += '.';
  let todo = known?.todo ?? (e.problem ? '' : texts.other);
  if (e.retryAfter) todo += ' ' + texts.retryAfter(e.retryAfter);
  const more = fields.filter((f) => !title.toLowerCase().includes(f.replace(/[.]$/, '').toLowerCase()) && e.problem?.code !== 'too_many');
  return { title, todo: todo.trim(), fields: more };
}
