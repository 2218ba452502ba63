// minris: keeps the board live, helps while one types. Every page works without this file.
"use strict";

(function () {
  const board = document.getElementById("board");
  const offline = document.getElementById("offline");
  if (!board || !window.EventSource) return;

  let shown = board.innerHTML;
  let mark = board.dataset.mark || "";
  let waiting = false;
  let again = false;

  // Fetch the board and put it in place, unless nothing has changed.
  async function refresh() {
    if (waiting) { again = true; return; }
    waiting = true;
    try {
      const path = board.dataset.part + "&have=" + mark;
      const answer = await fetch(path, { credentials: "same-origin", redirect: "manual" });
      if (answer.type === "opaqueredirect" || answer.status === 401) { location.reload(); return; }
      if (!answer.ok) throw new Error(answer.status);
      offline.hidden = true;
      if (answer.status === 204) return;
      const text = await answer.text();
      mark = answer.headers.get("X-Mark") || "";
      if (text !== shown) put(text);
    } catch (error) {
      offline.hidden = false;
    } finally {
      waiting = false;
      if (again) { again = false; refresh(); }
    }
  }

  // Keep the focus where it was: the same control in the same place of the new board.
  function put(text) {
    const focused = document.activeElement;
    const inside = board.contains(focused);
    const controls = () => Array.from(board.querySelectorAll("a, button"));
    const place = inside ? controls().indexOf(focused) : -1;
    shown = text;
    board.innerHTML = text;
    if (place >= 0 && controls()[place]) controls()[place].focus();
  }

  // A browser has few connections to one server: a page that is not seen gives its own back.
  let stream = null;
  function listen() {
    if (document.hidden) {
      if (stream) stream.close();
      stream = null;
    } else if (!stream) {
      stream = new EventSource("/events");
      stream.onmessage = refresh;
      stream.onopen = () => { offline.hidden = true; };
      stream.onerror = () => { offline.hidden = false; };
    }
  }
  document.addEventListener("visibilitychange", listen);
  listen();
  // Minutes since an event go on though nothing happens.
  setInterval(refresh, 30000);
})();

// A part of a page that is fetched for what is typed; the answer to the last question counts.
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
    } catch (error) { /* it is a help, no more */ }
  }
  return (query, wait) => {
    clearTimeout(timer);
    timer = setTimeout(ask, wait, query);
  };
}

const field = (name) => document.getElementById(name);

// Registration: who may be meant is shown while a name, number, phone or birth date is typed.
(function () {
  const found = field("found");
  if (!found) return;

  // An identity number says birth date and sex.
  function fill(element) {
    const told = element.firstElementChild;
    if (!told || !told.dataset.born) return;
    if (!field("birth_date").value) field("birth_date").value = told.dataset.born;
    if (!field("sex").value) field("sex").value = told.dataset.sex;
  }

  const ask = asker(found, fill);
  for (const name of ["family_name", "given_name", "chinese_name", "patient_id", "phone", "birth_date"]) {
    const input = field(name);
    if (input) input.addEventListener("input", () => {
      const family = name === "given_name" ? field("family_name").value + " " : "";
      ask({ q: family + input.value }, 200);
    });
  }
})();

// An exam: what is in its way, and when the device is free.
(function () {
  const slots = field("slots");
  if (!slots || !field("time")) return;
  const names = ["device", "date", "time", "procedure"];
  const step = document.querySelector("input[name=step]");

  function look(wait) {
    const query = Object.fromEntries(names.map((name) => [name, field(name) ? field(name).value : ""]));
    if (step) query.step = step.value;
    ask(query, wait);
  }
  function use(element) {
    for (const button of element.querySelectorAll("[data-time]")) {
      button.addEventListener("click", () => {
        field("time").value = button.dataset.time;
        look(0);
        field("time").focus();
      });
    }
  }
  const ask = asker(slots, use);
  for (const name of names) {
    if (field(name)) field(name).addEventListener("input", () => look(200));
  }
  if (field("device").value) look(0);
})();

// A form is sent once: the second click of a double click finds its button asleep.
document.addEventListener("submit", (event) => {
  for (const button of event.target.elements) {
    if (button.tagName !== "BUTTON") continue;
    setTimeout(() => { button.disabled = true; }, 0);
    setTimeout(() => { button.disabled = false; }, 5000);
  }
});
// The back button shows a page as it was, asleep buttons too.
window.addEventListener("pageshow", () => {
  for (const button of document.querySelectorAll("button:disabled")) button.disabled = false;
});

// Keys, while nothing is typed: N new, / search, T today, arrows for the day, P print, ? what there is.
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select, [contenteditable]");
  if (typing || event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
  const follow = (selector) => {
    const link = document.querySelector(selector);
    if (link) link.click();
    return Boolean(link);
  };
  const search = document.querySelector("form[role=search] input, input[autofocus]");
  const keys = {
    n: () => follow("a[href='/register']"),
    t: () => follow("header a[href='/']"),
    p: () => follow("a[href^='/print'], a[href$='/label']"),
    ArrowLeft: () => follow("a[rel=prev]"),
    ArrowRight: () => follow("a[rel=next]"),
    "/": () => { if (search) search.focus(); else location.href = "/patients"; return true; },
    "?": () => { const keys = field("keys"); if (keys) keys.open = !keys.open; return Boolean(keys); },
  };
  const deed = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (deed && deed()) event.preventDefault();
});
