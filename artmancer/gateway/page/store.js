// Keeps the work of this tab over a reload, in IndexedDB: the pictures, and the state around them.

/** Milliseconds after which the work of a tab that was closed is deleted. */
const LIFETIME = 24 * 3600 * 1000;

/** The key under which a tab keeps its own id. A reload keeps it, a new tab has none. */
const KEY = "artmancer.tab";

const tab = (sessionStorage[KEY] ??= `${Date.now()}-${Math.random()}`);

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

/** Return the state that was saved last, or undefined. */
export async function loadState() {
  const { states } = await stores();
  return (await done(states.get(tab)))?.state;
}

export async function saveState(state) {
  const { states } = await stores();
  await done(states.put({ state, time: Date.now() }, tab));
}

/** Return a picture that was saved under a number or name, or undefined. */
export async function loadPicture(name) {
  const { pictures } = await stores();
  return done(pictures.get([tab, name]));
}

export async function savePicture(name, picture) {
  const { pictures } = await stores();
  await done(pictures.put(picture, [tab, name]));
}

/** Delete the work of a tab. */
async function remove(owner) {
  const { states, pictures } = await stores();
  states.delete(owner);
  await done(pictures.delete(keysOf(owner)));
}

/** Delete all that this tab saved. */
export const clear = () => remove(tab);

/** Delete the work of tabs that were closed long ago. */
export async function prune() {
  const { states } = await stores();
  const [owners, entries] = await Promise.all([done(states.getAllKeys()), done(states.getAll())]);
  const isOld = (_, index) => owners[index] !== tab && entries[index].time < Date.now() - LIFETIME;
  await Promise.all(owners.filter(isOld).map(remove));
}
