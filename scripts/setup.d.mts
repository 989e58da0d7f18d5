// The types of setup.mjs, which is plain JavaScript because it runs before anything is installed.
export declare const projectFolder: string
/** The Node of the checkout. */
export declare const projectNode: string
export declare function ensureDependencies(): Promise<void>
export declare function ensureLab(): Promise<
  { folder: string; unavailable?: never } | { folder?: never; unavailable: string }
>
