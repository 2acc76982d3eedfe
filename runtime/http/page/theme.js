// Dark or light, before anything is drawn: as chosen on this page, else as the system is.
"use strict";
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("maskpro-theme");
  } catch {
    // storage is blocked: the system decides
  }
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
})();
