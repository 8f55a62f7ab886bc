import { svelte } from '@sveltejs/vite-plugin-svelte';
import { defineConfig } from 'vite';

// The build is committed, and a test proves that it regenerates byte for byte: nothing in it may depend
// on the machine, its paths or the time.
export default defineConfig({
  plugins: [
    svelte({
      compilerOptions: { runes: true, cssHash: ({ hash, css }) => `s-${hash(css)}` },
    }),
  ],
  build: {
    outDir: '../dist',
    emptyOutDir: true,
    target: 'es2022',
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    cssCodeSplit: false,
  },
});
