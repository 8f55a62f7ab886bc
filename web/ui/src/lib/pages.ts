import type { Component } from 'svelte';
import Access from '../pages/Access.svelte';
import Account from '../pages/Account.svelte';
import Audit from '../pages/Audit.svelte';
import Blacklist from '../pages/Blacklist.svelte';
import BlockPage from '../pages/Block.svelte';
import Explain from '../pages/Explain.svelte';
import ListPage from '../pages/List.svelte';
import Lists from '../pages/Lists.svelte';
import NodePage from '../pages/Node.svelte';
import Nodes from '../pages/Nodes.svelte';
import NotFound from '../pages/NotFound.svelte';
import Overview from '../pages/Overview.svelte';
import Settings from '../pages/Settings.svelte';
import VMPage from '../pages/VM.svelte';
import VMs from '../pages/VMs.svelte';
import { fleet } from './state.svelte';
import type { IconName } from './icons';
import type { Scope } from './types';

export type Nav = 'overview' | 'vms' | 'blacklist' | 'lists' | 'nodes' | 'audit' | 'access' | 'settings' | 'explain' | 'missing';

/** What the rail offers, and to whom. */
export const places: { nav: Exclude<Nav, 'explain' | 'missing'>; to: string; icon: IconName; scope: Scope }[] = [
  { nav: 'overview', to: '/', icon: 'overview', scope: 'viewer' },
  { nav: 'vms', to: '/vms', icon: 'vms', scope: 'billing' },
  { nav: 'blacklist', to: '/blacklist', icon: 'ban', scope: 'billing' },
  { nav: 'lists', to: '/lists', icon: 'list', scope: 'viewer' },
  { nav: 'nodes', to: '/nodes', icon: 'nodes', scope: 'viewer' },
  { nav: 'audit', to: '/audit', icon: 'audit', scope: 'admin' },
  { nav: 'access', to: '/access', icon: 'access', scope: 'metrics' },
  { nav: 'settings', to: '/settings', icon: 'settings', scope: 'viewer' },
];

/** Whether the caller has anything to see there. Viewers have VMs and the blacklist too. */
export function mayVisit(scope: Scope): boolean {
  return scope === 'metrics' || fleet.sees(scope) || (scope === 'billing' && fleet.sees('viewer'));
}

export interface Shown {
  nav: Nav;
  // Every page has its own properties; the path decides which.
  // eslint-disable-next-line @typescript-eslint/no-explicit-any
  component: Component<any>;
  props: Record<string, string>;
  key: string;
}

function shown(nav: Nav, component: Shown['component'], props: Record<string, string> = {}): Shown {
  return { nav, component, props, key: nav + JSON.stringify(props) };
}

/** The page of a path. */
export function pageOf(parts: string[]): Shown {
  const [first, second] = parts;
  if (parts.length > 2) return shown('missing', NotFound);
  if (first === undefined || first === 'login') {
    return fleet.sees('viewer') ? shown('overview', Overview) : shown('vms', VMs);
  }
  if (second !== undefined) {
    switch (first) {
      case 'vms':
        return shown('vms', VMPage, { id: second });
      case 'blacklist':
        return second === 'schedule' ? shown('blacklist', Blacklist, { tab: 'schedule' }) : shown('blacklist', BlockPage, { id: second });
      case 'lists':
        return shown('lists', ListPage, { name: second });
      case 'nodes':
        return shown('nodes', NodePage, { id: second });
      case 'accounts':
        return shown('vms', Account, { id: second });
    }
    return shown('missing', NotFound);
  }
  switch (first) {
    case 'vms':
      return shown('vms', VMs);
    case 'blacklist':
      return shown('blacklist', Blacklist);
    case 'lists':
      return shown('lists', Lists);
    case 'nodes':
      return shown('nodes', Nodes);
    case 'audit':
      return shown('audit', Audit);
    case 'access':
      return shown('access', Access);
    case 'settings':
      return shown('settings', Settings);
    case 'explain':
      return shown('explain', Explain);
  }
  return shown('missing', NotFound);
}
