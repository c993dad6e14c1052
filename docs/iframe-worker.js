/* Search without a server: a page that was opened from disk may not start a worker, so its script
 * runs in a hidden frame instead. Material's script for the search expects the name IFrameWorker. */
(() => {
  class IFrameWorker extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      window.addEventListener("message", (event) => this.receive(event));

      const page = this.frame.contentDocument;
      page.open();
      page.write(`<!doctype html><body><script>
        postMessage = (data) => parent.postMessage(data, "*");
        importScripts = (...urls) => urls.reduce((before, url) => before.then(() =>
          new Promise((done, failed) => {
            const script = document.createElement("script");
            Object.assign(script, { src: url, onload: done, onerror: failed });
            document.body.append(script);
          })), Promise.resolve());
      <\/script><script src="${url}"><\/script></body>`);
      const script = page.querySelector("script[src]");
      this.loaded = new Promise((done) => script.addEventListener("load", done));
      page.close();
    }

    receive(event) {
      if (event.source !== this.frame.contentWindow) return;
      const message = new MessageEvent("message", { data: event.data });
      this.dispatchEvent(message);
      if (this.onmessage) this.onmessage(message);
    }

    postMessage(data) {
      const frame = this.frame.contentWindow; // its own postMessage is what the script calls
      this.loaded.then(() => frame.dispatchEvent(new frame.MessageEvent("message", { data })));
    }

    terminate() {
      this.frame.remove();
    }
  }

  window.IFrameWorker = IFrameWorker;
  if (location.protocol === "file:") window.Worker = IFrameWorker;
})();
