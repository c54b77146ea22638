/**
 * What goes with a request on its way through the server.
 *
 * @module
 */

import type { LogEntry } from "./log.ts";

/** What a request carries through the middleware. */
export type Env = {
  Variables: {
    /** Its line of the log. */
    entry: LogEntry;
    /** Digest of its key, where there are several. */
    key: string | undefined;
  };
  Bindings: {
    /** Name of its connection. */
    connection?: string;
  };
};
