"use strict";
const form = document.querySelector("form");
const button = form.querySelector("button");
const status = document.querySelector("[role=status]");
const token = new URLSearchParams(location.hash.slice(1)).get("token");

function say(text, bad) {
  status.textContent = text;
  status.classList.toggle("bad", bad);
}

// It is neither to stay in the history nor to be seen in the address bar.
history.replaceState(null, "", location.pathname);
if (!token) {
  form.hidden = true;
  say("This page is opened by the link in a mail. Open that link again, all of it.", true);
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  button.disabled = true;
  say("", false);
  try {
    // Beside this page, also where the service is below a path.
    const answer = await fetch(new URL(form.dataset.posts, document.baseURI), {
      method: "POST",
      headers: {"Content-Type": "application/json"},
      body: JSON.stringify({token, ...Object.fromEntries(new FormData(form))}),
    });
    if (answer.ok) {
      form.hidden = true;
      say(form.dataset.done, false);
    } else {
      const problem = await answer.json();
      say(problem.errors?.[0]?.detail ?? problem.detail, true);
    }
  } catch {
    say("The board cannot be reached. Try again shortly.", true);
  }
  button.disabled = false;
});
