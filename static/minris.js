// minris: live board, help while typing. Every page works without this file.
"use strict";

const root = document.body.dataset.root;  // path of all pages, with / at its end

(function () {
  const board = document.getElementById("board");
  const offline = document.getElementById("offline");
  if (!board || !window.EventSource) return;

  const news = document.getElementById("news");
  const points = window.matchMedia("(hover: hover)");  // a finger leaves its hover behind
  let latest = null;  // what the server has last sent, as long as it is not all shown
  let mark = board.dataset.mark || "";
  let waiting = false;
  let again = false;
  let mine = "";  // the row that one has just acted upon: it changes even under the pointer

  // Fetch the board and show it if it has changed.
  async function refresh() {
    if (waiting) { again = true; return; }
    waiting = true;
    try {
      const path = board.dataset.part + "&have=" + mark;
      const answer = await fetch(path, { credentials: "same-origin", redirect: "manual" });
      if (answer.type === "opaqueredirect" || answer.status === 401) { location.reload(); return; }
      if ((answer.headers.get("X-Alarm") || "") !== document.body.dataset.alarm) { location.reload(); return; }
      if (!answer.ok) throw new Error(answer.status);
      offline.hidden = true;
      if (answer.status === 204) return;
      latest = await answer.text();
      mark = answer.headers.get("X-Mark") || "";
      put();
    } catch (error) {
      offline.hidden = false;
    } finally {
      waiting = false;
      if (again) { again = false; refresh(); }
    }
  }

  // Show what is new. While somebody points at the list, or has the focus in it, nothing moves and
  // no button becomes another one: the next click would hit another patient, or do something else.
  function put() {
    if (latest === null) return;
    const fresh = document.createElement("div");
    fresh.innerHTML = latest;
    const held = (points.matches && board.matches(":hover") || board.matches(":focus-within"))
      && board.querySelector("button");
    const left = held ? patch(fresh) : 0;
    if (!held) {
      const order = outline(board);
      board.innerHTML = latest;
      if (order !== outline(board)) settle();
    }
    if (!left) latest = null;
    if (!news) return;
    news.hidden = !left;
    news.textContent = news.dataset.words.replace("{count}", left);
  }

  const rowsOf = (part) => Array.from(part.querySelectorAll("[data-step]"));
  const outline = (part) => Array.from(part.querySelectorAll("h2, [data-step]"),
    (one) => one.dataset.step || one.textContent).join("\n");

  // Write into the rows what moves nothing; return the number of changes that have to wait.
  function patch(fresh) {
    const olds = new Map(rowsOf(board).map((row) => [row.dataset.step, row]));
    const rows = rowsOf(fresh);
    const own = rows.find((row) => row.dataset.step === mine);
    if (own && olds.has(mine)) {
      olds.get(mine).innerHTML = own.innerHTML;
      olds.get(mine).dataset.state = own.dataset.state;
    }
    if (outline(board) !== outline(fresh)) {
      const same = rows.filter((row) => {
        const old = olds.get(row.dataset.step);
        return old && old.dataset.state === row.dataset.state;
      });
      return Math.max(1, Math.max(rows.length, olds.size) - same.length);
    }
    const held = Array.from(board.querySelectorAll("[data-step]:hover, [data-step]:focus-within"));
    const places = () => held.flatMap((row) => Array.from(row.querySelectorAll("button"),
      (one) => { const box = one.getBoundingClientRect(); return [box.left, box.top]; })).join();
    const place = places();
    let left = 0;
    for (const row of rows) {
      const old = olds.get(row.dataset.step);
      const closed = (html) => html.replaceAll(' open=""', "").trim();  // a menu may be open
      if (closed(old.outerHTML) === closed(row.outerHTML)) continue;
      const actions = (one) => closed(one.querySelector(".actions").innerHTML);
      if (held.includes(old) && actions(old) !== actions(row)) { left += 1; continue; }
      const before = old.innerHTML;
      if (held.includes(old)) {
        Array.from(old.cells).forEach((cell, number) => {
          if (cell.innerHTML !== row.cells[number].innerHTML) cell.innerHTML = row.cells[number].innerHTML;
        });
      } else {
        old.innerHTML = row.innerHTML;
      }
      if (places() !== place) {  // it would move what is pointed at
        old.innerHTML = before;
        left += 1;
      } else {
        old.dataset.state = row.dataset.state;
      }
    }
    const summary = (part) => part.querySelector(".summary");
    if (!left && summary(board) && summary(fresh)) summary(board).innerHTML = summary(fresh).innerHTML;
    return left;
  }

  // A finger does not hover: what has just moved takes no tap for a moment.
  let settling = 0;
  function settle() {
    board.classList.add("moved");
    clearTimeout(settling);
    settling = setTimeout(() => board.classList.remove("moved"), 700);
  }

  // Act where one stands: the row changes in its place, and a toast says who and what, with undo.
  // What the server would rather ask about (409) is asked on a page of its own.
  const told = document.getElementById("told");
  let forget = 0;
  async function act(form, button) {
    mine = (button.getAttribute("formaction") || form.getAttribute("action")).replace(/^.*step\/|[?].*$/g, "");
    const body = new URLSearchParams(new FormData(form));
    body.set(button.name, button.value);
    const how = { method: "POST", body, credentials: "same-origin", redirect: "manual" };
    const answer = await fetch(button.getAttribute("formaction") ? button.formAction : form.action, how);
    if (answer.type !== "opaqueredirect") throw new Error(answer.status);
    const words = await fetch(root + "?part=told", { credentials: "same-origin", redirect: "manual" });
    if (!words.ok) { location.reload(); return; }
    told.innerHTML = await words.text();
    told.className = "toast";
    clearTimeout(forget);
    forget = setTimeout(() => { if (!told.matches(":hover, :focus-within")) told.textContent = ""; }, 10000);
    for (const menu of board.querySelectorAll(".more[open]")) menu.open = false;
    await refresh();
    put();
    setTimeout(() => { mine = ""; }, 1000);
  }
  document.addEventListener("submit", (event) => {
    const button = event.submitter;
    if (event.defaultPrevented || !button || !(event.target.id === "act" || told.contains(button))) return;
    event.preventDefault();
    act(event.target, button).catch(() => {
      const value = document.createElement("input");
      Object.assign(value, { type: "hidden", name: button.name, value: button.value });
      event.target.append(value);
      event.target.action = button.getAttribute("formaction") ? button.formAction : event.target.action;
      event.target.submit();
    });
  });

  const later = () => setTimeout(put, 0);  // once the browser knows where pointer and focus are
  // Whoever presses the badge has left the list.
  for (const event of ["pointerleave", "pointerover", "focusout"]) board.addEventListener(event, later);

  // A browser opens few connections to one server: a hidden page closes its own.
  let stream = null;
  function listen() {
    if (document.hidden) {
      if (stream) stream.close();
      stream = null;
    } else if (!stream) {
      stream = new EventSource(root + "events");
      stream.onmessage = refresh;
      stream.onopen = () => { offline.hidden = true; };
      stream.onerror = () => { offline.hidden = false; };
    }
  }
  document.addEventListener("visibilitychange", listen);
  listen();
  // "Since … min" changes even if nothing happens.
  setInterval(refresh, 30000);
})();

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

// Registration: show known patients while a name, ID, phone or birth date is typed.
(function () {
  const found = field("found");
  if (!found) return;

  // An identity number contains birth date and sex; a birth date is read back with the age.
  function fill(element) {
    const told = element.firstElementChild;
    for (const button of element.querySelectorAll("button")) button.tabIndex = -1;  // arrows lead there
    const echo = element.querySelector("[data-echo]");
    if (echo) field("birth_date-help").textContent = echo.textContent;
    if (!told || !told.dataset.born) return;
    if (!field("birth_date").value) field("birth_date").value = told.dataset.born;
    if (!field("sex").value) field("sex").value = told.dataset.sex;
  }

  const ask = asker(found, fill);
  const names = ["q", "family_name", "given_name", "chinese_name", "patient_id", "identity", "phone", "birth_date"];
  for (const name of names) {
    const input = field(name);
    if (input) input.addEventListener("input", () => {
      const family = name === "given_name" ? field("family_name").value + " " : "";
      ask({ q: family + input.value, field: name }, 200);
    });
  }
  found.closest("form").addEventListener("keydown", (event) => {
    const known = Array.from(found.querySelectorAll("button"));
    const typing = names.includes(event.target.id);
    const step = { ArrowDown: 1, ArrowUp: -1, Enter: event.target.id === "q" ? 1 : 0 }[event.key];
    if (!step || !typing && !found.contains(event.target)) return;
    event.preventDefault();
    const place = known.indexOf(document.activeElement) + step;
    if (known.length) (known[place] || field("q")).focus();
  });
  // Back from the exam that was just registered: not to an empty form, which would register twice.
  const made = sessionStorage.getItem("registered");
  sessionStorage.removeItem("registered");
  if (made && performance.getEntriesByType("navigation")[0].type === "back_forward") location.replace(made);
})();
if (location.search === "?registered=1") sessionStorage.setItem("registered", location.pathname);

// Exam form: the exam sets its device; overlapping exams and free times of the device are shown.
(function () {
  const slots = field("slots");
  if (!slots || !field("time")) return;
  const names = ["procedure", "device", "modality", "date", "time"];
  const step = document.querySelector("input[name=step]");
  const device = field("device");
  let own = !device.value;  // no person has chosen the device

  function look(wait) {
    const query = Object.fromEntries(names.map((name) => [name, field(name) ? field(name).value : ""]));
    if (own) query.device = "";
    if (step) query.step = step.value;
    ask(query, wait);
  }
  const ask = asker(slots, (element) => {
    if (own) device.value = element.firstElementChild.dataset.device;
  });
  slots.addEventListener("change", (event) => {
    [field("date").value, field("time").value] = event.target.value.split(" ");
    for (const warning of slots.querySelectorAll(".warning")) warning.remove();
  });
  for (const name of names) {
    if (field(name)) field(name).addEventListener("input", () => {
      if (name === "device") own = !device.value;
      look(200);
    });
  }
})();

// A filter applies at once.
document.addEventListener("change", (event) => {
  const sends = event.target.matches("select[data-send]") || event.target.matches("[data-send]") && event.target.value;
  if (sends) event.target.form.requestSubmit(event.target.form.querySelector(`button[value="${event.target.name}"]`));
});

// The first day: a rejected caller fills the form; the time zone is that of the browser.
document.addEventListener("click", (event) => {
  const fill = event.target.closest("[data-fill]");
  if (!fill) return;
  event.preventDefault();
  for (const [name, value] of new URLSearchParams(fill.dataset.fill)) field(name).value = value;
  const folded = field("modality").closest("details");
  if (folded) folded.open = true;
  field("modality").focus();
});
const zone = document.querySelector(".steps #clinic_timezone");
if (zone && !zone.value) zone.value = Intl.DateTimeFormat().resolvedOptions().timeZone;

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

// The screen of the waiting room: a tone for whoever is newly called, once it is switched on.
const sound = document.getElementById("sound");
if (sound) {
  const called = () => Array.from(document.querySelectorAll("[data-called]"), (one) => one.dataset.called).sort().pop() || "";
  let tones = null;
  let last = called();
  sound.hidden = false;
  sound.addEventListener("click", () => {
    if (tones) tones.close();
    tones = tones ? null : new AudioContext();
    sound.setAttribute("aria-pressed", String(Boolean(tones)));
  });
  new MutationObserver(() => {
    const newest = called();
    if (tones && newest > last) {
      const tone = tones.createOscillator();
      tone.connect(tones.destination);
      tone.start();
      tone.stop(tones.currentTime + 0.4);
    }
    last = newest;
  }).observe(document.getElementById("board"), { childList: true, subtree: true });
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
