// minris: what every page has. Every page works without its scripts.
"use strict";

const root = document.body.dataset.root;  // path of all pages, with / at its end

// Fetch a part of the page for what is typed; only the answer to the last query counts.
function asker(element, use) {
  let asked = 0;
  let timer = 0;
  async function ask(query) {
    const mine = ++asked;
    try {
      const path = element.dataset.find + "?" + new URLSearchParams(query);
      const answer = await fetch(path, { credentials: "same-origin", redirect: "manual" });
      if (!answer.ok || mine !== asked) return;
      element.innerHTML = await answer.text();
      if (use) use(element);
    } catch (error) { /* the page works without it */ }
  }
  return (query, wait) => {
    clearTimeout(timer);
    timer = setTimeout(ask, wait, query);
  };
}

const field = (name) => document.getElementById(name);

// The search box of every page: what is found stands below it; arrows move through it.
(function () {
  const answers = field("answers"), box = field("search");
  if (!answers) return;
  const ask = asker(answers);
  box.addEventListener("input", () => {
    if (box.value.trim()) ask({ q: box.value, part: 1 }, 120);
    else { ask({ q: "", part: 1 }, 0); answers.textContent = ""; }
  });
  box.form.addEventListener("keydown", (event) => {
    const links = Array.from(answers.querySelectorAll("a"));
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") { answers.textContent = ""; box.focus(); }
    if (!step || !links.length) return;
    const place = links.indexOf(document.activeElement) + step;
    (links[place] || box).focus();
    event.preventDefault();
  });
  document.addEventListener("click", (event) => {
    if (!box.form.contains(event.target)) answers.textContent = "";
  });
})();

// A filter applies at once.
document.addEventListener("change", (event) => {
  const sends = event.target.matches("select[data-send]") || event.target.matches("[data-send]") && event.target.value;
  if (sends) event.target.form.requestSubmit(event.target.form.querySelector(`button[value="${event.target.name}"]`));
});

// Compact rows, as this browser was told: one line for an exam.
const compact = field("compact");
if (compact) {
  const show = (on) => {
    document.body.classList.toggle("compact", on);
    compact.setAttribute("aria-pressed", String(on));
  };
  compact.hidden = false;
  show(localStorage.getItem("compact") === "yes");
  compact.addEventListener("click", () => {
    localStorage.setItem("compact", document.body.classList.contains("compact") ? "" : "yes");
    show(Boolean(localStorage.getItem("compact")));
  });
}

// Menus behind dots: one is open at a time; a click beside it or Escape closes it.
document.addEventListener("toggle", (event) => {
  if (!event.target.matches(".more, .me") || !event.target.open) return;
  for (const other of document.querySelectorAll(".more[open], .me[open]")) {
    if (other !== event.target) other.open = false;
  }
}, true);
document.addEventListener("click", (event) => {
  for (const menu of document.querySelectorAll(".more[open], .me[open]")) {
    if (!menu.contains(event.target)) menu.open = false;
  }
});

// Send a form once: its buttons are disabled for the second click of a double click.
document.addEventListener("submit", (event) => {
  for (const button of event.target.elements) {
    if (button.tagName !== "BUTTON") continue;
    setTimeout(() => { button.disabled = true; }, 0);
    setTimeout(() => { button.disabled = false; }, 5000);
  }
});
// The back button restores the page with its buttons disabled: enable them.
window.addEventListener("pageshow", () => {
  for (const button of document.querySelectorAll("button:disabled")) button.disabled = false;
});

for (const button of document.querySelectorAll("[data-print]")) {
  button.hidden = false;
  button.addEventListener("click", () => print());
}

// Keys, outside of fields: N new, / search, T today, arrows previous or next day, P print, ? help.
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select, [contenteditable]");
  if (typing || event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
  const follow = (selector) => {
    const link = document.querySelector(selector);
    if (link) link.click();
    return Boolean(link);
  };
  const search = document.querySelector("main form[role=search] input") || field("search");
  const ahead = document.dir === "rtl" ? "Left" : "Right", behind = ahead === "Left" ? "Right" : "Left";
  const keys = {
    n: () => follow(`a[href='${root}register']`),
    t: () => follow(".brand"),
    p: () => follow(`a[href^='${root}print'], a[href$='/label']`),
    [`Arrow${behind}`]: () => follow("a[rel=prev]"),
    [`Arrow${ahead}`]: () => follow("a[rel=next]"),
    "/": () => { if (search) search.focus(); else location.href = root + "patients"; return true; },
    "?": () => {
      const keys = field("keys");
      if (keys) keys.parentElement.closest("details").open = keys.open = !keys.open;
      return Boolean(keys);
    },
  };
  const deed = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (deed && deed()) event.preventDefault();
});
