import { en, type Texts } from '../texts/en';

export const languages = { en: 'English', ru: 'Русский' } as const;
export type Lang = keyof typeof languages;

function kept(key: string): string | null {
  try {
    return localStorage.getItem(key);
  } catch {
    return null; // storage is switched off
  }
}

export function keep(key: string, value: string): void {
  try {
    localStorage.setItem(key, value);
  } catch {
    // It lasts until the page is closed.
  }
}

class Language {
  lang = $state<Lang>('en');
  texts = $state.raw<Texts>(en);

  async set(lang: Lang): Promise<void> {
    // Only the first language comes with the page.
    this.texts = lang === 'ru' ? (await import('../texts/ru')).ru : en;
    this.lang = lang;
    document.documentElement.lang = lang;
    keep('lang', lang);
  }

  async begin(): Promise<void> {
    const want = kept('lang') ?? navigator.language.slice(0, 2);
    if (want === 'ru') await this.set('ru').catch(() => {});
  }
}

export const language = new Language();

/** The texts of the present language. */
export function t(): Texts {
  return language.texts;
}

export type Theme = 'auto' | 'dark' | 'light';

class Look {
  theme = $state<Theme>('auto');
  /** What the system wants, which may change while the page is open. */
  dark = $state(false);

  constructor() {
    const system = matchMedia('(prefers-color-scheme: dark)');
    this.dark = system.matches;
    system.addEventListener('change', () => (this.dark = system.matches));
    const k = kept('theme');
    if (k === 'dark' || k === 'light') this.set(k);
  }

  set(theme: Theme): void {
    this.theme = theme;
    keep('theme', theme);
    if (theme === 'auto') delete document.documentElement.dataset['theme'];
    else document.documentElement.dataset['theme'] = theme;
  }
}

export const look = new Look();
