// The token that some gateways require: the user enters it, and the tab keeps it.

/** The key under which a tab stores the token. It never becomes part of an address. */
const KEY = "artmancer.token";

const byId = (id) => document.getElementById(id);
const dialog = byId("token-dialog");
const field = byId("token");

/** The promise of the question that the user sees now; null: there is none. */
let asking = null;

/** The token that this tab has, or null. */
export const current = () => sessionStorage.getItem(KEY);

/** Return the header that carries the token. */
export function header() {
  const token = current();
  if (token === null) return {};
  // A header holds bytes, and the gateway compares the token's bytes in UTF-8.
  const bytes = new TextEncoder().encode(token);
  return { Authorization: `Bearer ${String.fromCharCode(...bytes)}` };
}

/**
 * Get another token than one that was refused; all requests that need one wait for the same answer of the user.
 * @param {string | null} refused null: none was sent
 * @returns {Promise<boolean>} false if the user closes the question
 */
export async function replace(refused) {
  if (current() !== refused) return true;
  asking ??= ask(refused !== null).finally(() => (asking = null));
  return asking;
}

function ask(isWrong) {
  byId("token-error").textContent = isWrong ? "The gateway does not accept this token. Check it, and enter it again." : "";
  field.setAttribute("aria-invalid", isWrong);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "entered"), { once: true });
  });
}

byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, field.value.trim());
  field.value = "";
  dialog.close("entered");
});

byId("token-cancel").addEventListener("click", () => dialog.close());
