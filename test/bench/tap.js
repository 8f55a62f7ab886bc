// Runs in the page before its own code: counts what the page reads, and asks for a frame all the time, as a page does that somebody
// scrolls: then each frame's work on the main thread can be told, and which frames were missed.
(() => {
  const tap = { events: 0, repeated: 0, resets: 0, streams: 0, usable: 0, frames: 0, missed: 0, requests: {}, delays: [] };
  let last = 0;
  window.palisadeBench = tap;

  const parse = JSON.parse;
  JSON.parse = (text, reviver) => {
    const x = parse(text, reviver);
    if (x?.type === 'reset') tap.resets++;
    // A lift may make the fleet forget the oldest one, in the same entry of the log.
    if (x?.actor === ACTOR && x.index && x.type !== 'block.forgotten') {
      if (x.index <= last) tap.repeated++;
      last = Math.max(last, x.index);
      tap.events++;
      const step = Math.min(Math.max(0, Math.floor((Date.now() - Date.parse(x.at)) / 5)), 2000);
      tap.delays[step] = (tap.delays[step] ?? 0) + 1;
    }
    return x;
  };

  const fetch = window.fetch;
  window.fetch = (url, init) => {
    const path = String(url).split('?')[0];
    if (path === '/v1/events') tap.streams++;
    return fetch.call(window, url, init);
  };
  new PerformanceObserver((list) => {
    for (const e of list.getEntries()) {
      const path = new URL(e.name).pathname;
      const r = (tap.requests[path] ??= { count: 0, bytes: 0 });
      r.count++;
      r.bytes += e.transferSize;
    }
  }).observe({ type: 'resource' });

  // Usable: the fleet is shown and the search can be typed into, and that frame is over.
  const seen = new MutationObserver(() => {
    if (document.querySelectorAll('[data-node]').length < NODES || !document.querySelector('#search')) return;
    seen.disconnect();
    requestAnimationFrame(() => setTimeout(() => (tap.usable = performance.now())));
  });
  seen.observe(document, { childList: true, subtree: true });

  let before = 0;
  const frame = (now) => {
    if (before) {
      tap.frames++;
      tap.missed += Math.max(0, Math.round((now - before) / (1000 / 60)) - 1);
    }
    before = now;
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
})();
