/**
 * A queue in which clients take turns: each has its own order, and none waits for all that another one has queued.
 *
 * @module
 */

/** Items by client. A client's items leave in the order in which they came; clients leave one item each, in turn. */
export class Turns<T> {
  /** Clients with items, the one whose turn it is first. */
  readonly #queues = new Map<string, T[]>();
  #length = 0;

  /** Items of all clients. */
  get length(): number {
    return this.#length;
  }

  /** Adds an item at the end of its client's. */
  push(client: string, item: T): void {
    const queue = this.#queues.get(client);
    if (queue) queue.push(item);
    else this.#queues.set(client, [item]);
    this.#length++;
  }

  /** The next item of each client, in the order of their turns. */
  *next(): Generator<T, void, void> {
    for (const [item] of this.#queues.values()) yield item;
  }

  /** Takes an item out and ends its client's turn. */
  take(item: T): void {
    this.#remove((other) => other === item, true);
  }

  /** Takes out the first item for which this holds; its client keeps its turn. The item, or undefined. */
  withdraw(which: (item: T) => boolean): T | undefined {
    return this.#remove(which, false);
  }

  #remove(which: (item: T) => boolean, turned: boolean): T | undefined {
    for (const [client, queue] of this.#queues) {
      const at = queue.findIndex(which);
      if (at < 0) continue;
      const [item] = queue.splice(at, 1);
      this.#length--;
      if (turned || queue.length === 0) this.#queues.delete(client);
      if (turned && queue.length > 0) this.#queues.set(client, queue);
      return item;
    }
    return undefined;
  }

  /** Drops all items. */
  clear(): void {
    this.#queues.clear();
    this.#length = 0;
  }
}
