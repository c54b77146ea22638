/**
 * The model that ships with the package.
 *
 * @module
 */

/** Its folder. */
export const EMBEDDED_MODEL: URL = new URL("../../assets/tiny-llama", import.meta.url);
