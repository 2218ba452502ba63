// minris: keeps the board live. Every page works without this file.
"use strict";

(function () {
  const board = document.getElementById("board");
  const offline = document.getElementById("offline");
  if (!board || !window.EventSource) return;

  let shown = board.innerHTML;
  let waiting = false;
  let again = false;

  // Fetch the board and put it in place, unless nothing has changed or someone is in the middle
  // of something there.
  async function refresh() {
    if (waiting) { again = true; return; }
    waiting = true;
    try {
      const answer = await fetch(board.dataset.part, { credentials: "same-origin", redirect: "manual" });
      if (answer.type === "opaqueredirect" || answer.status === 401) { location.reload(); return; }
      if (!answer.ok) throw new Error(answer.status);
      const text = await answer.text();
      offline.hidden = true;
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

// Registration: who may be meant is shown while a name, number, phone or birth date is typed.
(function () {
  const found = document.getElementById("found");
  if (!found) return;
  const names = ["family_name", "given_name", "chinese_name", "patient_id", "phone", "birth_date"];
  const field = (name) => document.getElementById(name);
  let asked = 0;

  async function find(text) {
    const mine = ++asked;
    try {
      const answer = await fetch(found.dataset.find + "?q=" + encodeURIComponent(text), { credentials: "same-origin", redirect: "manual" });
      if (!answer.ok || mine !== asked) return;
      found.innerHTML = await answer.text();
      fill(found.firstElementChild);
    } catch (error) { /* it is a help, no more */ }
  }

  // An identity number says birth date and sex.
  function fill(told) {
    if (!told || !told.dataset.born) return;
    if (!field("birth_date").value) field("birth_date").value = told.dataset.born;
    if (!field("sex").value) field("sex").value = told.dataset.sex;
  }

  let timer = 0;
  for (const name of names) {
    const input = field(name);
    if (input) input.addEventListener("input", () => {
      clearTimeout(timer);
      const family = name === "given_name" ? field("family_name").value + " " : "";
      timer = setTimeout(find, 200, family + input.value);
    });
  }
})();

// A form is sent once: the second click of a double click finds its button asleep.
document.addEventListener("submit", (event) => {
  for (const button of event.target.querySelectorAll("button")) {
    setTimeout(() => { button.disabled = true; }, 0);
    setTimeout(() => { button.disabled = false; }, 5000);
  }
});
