// What the page does by itself: it says when the server is gone, marks an upload that the browser cannot show, and is
// printed light.
(() => {
  const EVERY = 10000, MISSES = 2;
  let missed = 0, bar = null;

  function told(gone) {
    if (gone && !bar) {
      bar = document.createElement("div");
      bar.className = "guda-gone";
      bar.setAttribute("role", "alert");
      bar.textContent = "The server does not answer. What you see stays. Buttons work again once it is back.";
      document.body.append(bar);
    } else if (!gone && bar) {
      bar.remove();
      bar = null;
    }
  }

  async function ask() {
    try {
      await fetch(new URL("./", location.href), { method: "HEAD", cache: "no-store" });
      missed = 0;
    } catch {
      missed += 1;
    }
    told(missed >= MISSES);
  }
  setInterval(ask, EVERY);

  // Paper is white: the dark page is printed in its light colours.
  const turn = (dark) => document.body.classList.toggle("dark", dark);
  addEventListener("beforeprint", () => {
    if (!document.body.classList.contains("dark")) return;
    turn(false);
    addEventListener("afterprint", () => turn(true), { once: true });
  });

  // A list whose field was only passed by Tab is shut, too: gradio may open it after the field lost the focus.
  addEventListener("focusout", (e) => setTimeout(() => {
    const open = e.target.getAttribute?.("aria-expanded") === "true" && e.target !== document.activeElement;
    if (open && e.target.tagName === "INPUT") e.target.dispatchEvent(new FocusEvent("blur"));
  }, 300));

  function mark(event, broken) {
    const image = event.target;
    if (image.tagName === "IMG" && image.closest(".guda-upload")) image.classList.toggle("guda-broken", broken);
  }
  document.addEventListener("error", (e) => mark(e, true), true);
  document.addEventListener("load", (e) => mark(e, false), true);
})();
