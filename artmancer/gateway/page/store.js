// Keeps the work of this tab over a reload, in IndexedDB: the pictures, and the state around them.

/** Milliseconds after which the work of a tab that was closed is deleted. */
const LIFETIME = 24 * 3600 * 1000;

/** The key under which a tab keeps its own id. A reload keeps it, a new tab has none, and a
 * duplicated tab that of its original. */
const KEY = "artmancer.tab";

/** Milliseconds that a page waits for the lock of the page before a reload. */
const HANDOVER = 5000;

const newId = () => `${Date.now()}-${Math.random()}`;

/** The name of the lock that a tab holds while it is open. */
const lockOf = (owner) => `artmancer.tab ${owner}`;

/** Hold a tab's lock until the tab is closed; false: another tab holds it. */
function hold(owner) {
  // The page before a reload holds its lock for a moment longer.
  const isReload = performance.getEntriesByType("navigation")[0]?.type === "reload";
  const options = isReload ? { signal: AbortSignal.timeout(HANDOVER) } : { ifAvailable: true };
  return new Promise((resolve) => {
    navigator.locks
      .request(lockOf(owner), options, (lock) => {
        resolve(!!lock);
        return lock && new Promise(() => {});
      })
      .catch(() => resolve(false));
  });
}

/** Return this tab's id. A duplicated tab comes with the id of its original, and goes on with a copy
 * of its work. */
async function claim() {
  const id = (sessionStorage[KEY] ??= newId());
  // Browsers have locks on HTTPS and on this machine only.
  if (!navigator.locks || (await hold(id))) return id;
  const own = newId();
  await hold(own);
  // A browser without room for a copy lets the tab start empty.
  await copy(id, own).catch(() => remove(own));
  sessionStorage[KEY] = own;
  return own;
}

/** All keys of a tab in the store "pictures". */
const keysOf = (owner) => IDBKeyRange.bound([owner], [owner, []]);

/** Return the result of a request. */
function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

let opened = null;

function database() {
  opened ??= (() => {
    const request = indexedDB.open("artmancer", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("states");
      request.result.createObjectStore("pictures");
    };
    return done(request);
  })();
  return opened;
}

async function stores() {
  const transaction = (await database()).transaction(["states", "pictures"], "readwrite");
  return { states: transaction.objectStore("states"), pictures: transaction.objectStore("pictures") };
}

/** Copy the work of a tab to another. */
async function copy(from, to) {
  const { states, pictures } = await stores();
  const [entry, names, saved] = await Promise.all([
    done(states.get(from)),
    done(pictures.getAllKeys(keysOf(from))),
    done(pictures.getAll(keysOf(from))),
  ]);
  if (!entry) return;
  names.forEach(([, name], index) => pictures.put(saved[index], [to, name]));
  await done(states.put({ ...entry, time: Date.now() }, to));
}

let claimed = null;

/** Return a promise of this tab's id. */
const tab = () => (claimed ??= claim());

/** Return the state that was saved last, or undefined. */
export async function loadState() {
  const owner = await tab();
  const { states } = await stores();
  return (await done(states.get(owner)))?.state;
}

export async function saveState(state) {
  const owner = await tab();
  const { states } = await stores();
  await done(states.put({ state, time: Date.now() }, owner));
}

/** Return a picture that was saved under a number or name, or undefined. */
export async function loadPicture(name) {
  const owner = await tab();
  const { pictures } = await stores();
  return done(pictures.get([owner, name]));
}

export async function savePicture(name, picture) {
  const owner = await tab();
  const { pictures } = await stores();
  await done(pictures.put(picture, [owner, name]));
}

/** Delete the work of a tab. */
async function remove(owner) {
  const { states, pictures } = await stores();
  states.delete(owner);
  await done(pictures.delete(keysOf(owner)));
}

/** Delete all that this tab saved. */
export const clear = async () => remove(await tab());

/** Delete the work of tabs that were closed long ago. */
export async function prune() {
  const owner = await tab();
  const held = (await navigator.locks?.query())?.held ?? [];
  const open = new Set(held.map(({ name }) => name)).add(lockOf(owner));
  const { states } = await stores();
  const [owners, entries] = await Promise.all([done(states.getAllKeys()), done(states.getAll())]);
  const isOld = (id, index) => !open.has(lockOf(id)) && entries[index].time < Date.now() - LIFETIME;
  await Promise.all(owners.filter(isOld).map(remove));
}
