"use strict";
// The copy buttons of a run's page.
(() => {
  const status = document.getElementById("copied");

  // Where the clipboard is out of reach, the old command may still copy; failing that the text is selected.
  const select = (element) => {
    const range = document.createRange();
    range.selectNodeContents(element);
    const selection = window.getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    try {
      return document.execCommand("copy");
    } catch {
      return false;
    }
  };

  const copy = async (element) => {
    try {
      await navigator.clipboard.writeText(element.textContent);
      return true;
    } catch {
      return select(element);
    }
  };

  for (const button of document.querySelectorAll("button.copy")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const done = await copy(document.getElementById(button.dataset.of));
      status.textContent = done ? "Copied to the clipboard." : "The command is selected: press Ctrl+C or ⌘C.";
      button.textContent = done ? "Copied" : "Selected";
      window.setTimeout(() => {
        button.textContent = "Copy";
      }, 2000);
    });
  }
})();
