"use strict";

const axis = document.getElementById("log-axis");
axis.addEventListener("change", () => document.body.classList.toggle("log", axis.checked));

const data = JSON.parse(document.getElementById("answers-data").textContent);
const slider = document.getElementById("answer-step");
const shown = document.getElementById("answer-step-shown");
const question = document.getElementById("answer-question");
const verdict = document.getElementById("answer-verdict");
const list = document.getElementById("answers-list");

function element(name, text, className) {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function article(answer) {
  const made = document.createElement("article");
  made.append(element("h3", answer.trajectory));
  made.append(element("div", `${answer.question}, answer ${answer.sample + 1}: ${answer.told}`, "verdict"));
  const text = element("pre", answer.text || "(empty)");
  text.dir = "auto";
  text.tabIndex = 0;
  made.append(text);
  return made;
}

function show() {
  const step = data.steps[Number(slider.value)];
  shown.textContent = step;
  slider.setAttribute("aria-valuetext", `step ${step}`);
  const found = data.answers.filter((answer) =>
    answer.step === step
    && (!question.value || answer.question === question.value)
    && (!verdict.value || answer.verdict === verdict.value));
  list.replaceChildren(...(found.length ? found.map(article) : [element("p", "No such answer at this step.")]));
}

if (data.steps.length) {
  for (const control of [slider, question, verdict]) control.addEventListener("input", show);
  show();
}
