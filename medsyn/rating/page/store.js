/**
 * What is kept on this computer: sessions, and what was said of each case. A promise is kept when it is on disk.
 * IndexedDB where there is one, else localStorage.
 */

const DATABASE = "medsyn-rating";
const TABLE = "records";

/** @typedef {{get(key: string): Promise<any>, list(prefix: string): Promise<any[]>,
 *   put(records: Record<string, any>): Promise<void>}} Store */

/** @returns {Promise<Store>} */
export async function openStore() {
  try {
    return new DatabaseStore(await openDatabase());
  } catch {
    return new TextStore(localStorage);
  }
}

/** @returns {Promise<IDBDatabase>} */
function openDatabase() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(DATABASE, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(TABLE);
    request.onsuccess = () => resolve(request.result);
    request.onerror = request.onblocked = () => reject(request.error);
  });
}

/** @template T @param {IDBRequest<T>} request @returns {Promise<T>} */
function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

class DatabaseStore {
  /** @param {IDBDatabase} database */
  constructor(database) {
    this.database = database;
  }

  get(key) {
    return result(this.database.transaction(TABLE).objectStore(TABLE).get(key));
  }

  list(prefix) {
    const range = IDBKeyRange.bound(prefix, `${prefix}\uffff`);
    return result(this.database.transaction(TABLE).objectStore(TABLE).getAll(range));
  }

  /** All records or none. */
  put(records) {
    return new Promise((resolve, reject) => {
      const transaction = this.database.transaction(TABLE, "readwrite");
      transaction.oncomplete = () => resolve();
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
      const table = transaction.objectStore(TABLE);
      for (const [key, value] of Object.entries(records)) table.put(value, key);
      transaction.commit();
    });
  }
}

class TextStore {
  /** @param {Storage} storage */
  constructor(storage) {
    this.storage = storage;
  }

  async get(key) {
    const text = this.storage.getItem(`${DATABASE}/${key}`);
    return text === null ? undefined : JSON.parse(text);
  }

  async list(prefix) {
    const keys = Object.keys(this.storage).filter((key) => key.startsWith(`${DATABASE}/${prefix}`));
    return keys.map((key) => JSON.parse(this.storage.getItem(key)));
  }

  async put(records) {
    for (const [key, value] of Object.entries(records)) {
      this.storage.setItem(`${DATABASE}/${key}`, JSON.stringify(value));
    }
  }
}
