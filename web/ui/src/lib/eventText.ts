import type { IconName } from './icons';
import { t } from './i18n.svelte';
import { href } from './router.svelte';
import { nameOf, visible } from './text';
import type { FleetEvent } from './types';

export interface EventLine {
  icon: IconName;
  look: string;
  what: string;
  text: string;
  detail: string;
  to: string;
}

/** An event as one line: what it is about, and what happened. */
export function eventText(e: FleetEvent): EventLine {
  const texts = t().events;
  const line = (icon: IconName, look: string, what: string, detail = '', to = ''): EventLine => ({ icon, look, what, text: texts[e.type] ?? e.type, detail, to });
  if (e.block) {
    const b = e.block;
    const look = { active: 'bad', pending: 'pending', lifted: 'ok', ended: 'ok' }[b.state];
    const type = e.type === 'block.added' && b.state === 'pending' ? 'block.agreed' : e.type;
    return { ...line(b.state === 'active' ? 'ban' : b.state === 'pending' ? 'clock' : 'unlock', look, nameOf(b), `${t().reasons[b.reason] ?? visible(b.reason, 30)} · ${b.id}`, href('blacklist', b.id)), text: texts[type] ?? type };
  }
  if (e.vm) {
    const v = e.vm;
    const m = v.migration;
    if (e.type === 'vm.migration' && m) {
      const what = line(m.phase === 'aborted' ? 'warn' : 'move', m.phase === 'aborted' ? 'warn' : 'move', v.name || v.id, `${visible(m.from, 30)} → ${visible(m.to, 30)}`, href('vms', v.id));
      return { ...what, text: t().migration.events[m.phase] };
    }
    const migrating = v.state === 'migrating';
    return line(migrating ? 'move' : 'vms', migrating ? 'move' : v.state === 'lost' ? 'warn' : 'muted', v.name || v.id, migrating && v.destination ? `${visible(v.node, 30)} → ${visible(v.destination, 30)}` : visible(v.node, 30), href('vms', v.id));
  }
  if (e.incident) return line('warn', e.incident.severity === 'critical' ? 'bad' : 'warn', e.incident.node, visible(e.incident.text, 160), href('nodes', e.incident.node));
  if (e.node) return line('nodes', 'muted', e.node.name || e.node.id, '', href('nodes', e.node.id));
  if (e.list) return line('list', 'muted', e.list.name, '', href('lists', e.list.name));
  if (e.guard) return line('shield', 'muted', e.guard.vm || e.guard.prefix || '', '', '/settings');
  if (e.account) return line('user', 'muted', e.account.id, '', href('accounts', e.account.id));
  if (e.settings) return line('settings', 'muted', t().nav.settings, '', '/settings');
  if (e.token) return line('access', 'muted', e.token.name, '', '/access');
  if (e.user) return line('user', 'muted', e.user.name, '', '/access');
  if (e.session) return line('user', 'muted', e.session.user, visible(e.session.from, 40), '/access');
  if (e.join_token) return line('access', 'muted', e.join_token.node || e.join_token.id, '', '/nodes');
  return line('info', 'muted', t().events.fleet ?? '', '', '/nodes');
}
