/** The connections of the page service by tenant: when the tenant moves away, its readers are sent after it. */
import type {FrameConnection} from '#runtime/net.ts';

export class Readers {
  readonly #connections = new Map<string, Set<FrameConnection>>();

  add(tenantId: string, connection: FrameConnection): void {
    const known = this.#connections.get(tenantId);
    if (known === undefined) this.#connections.set(tenantId, new Set([connection]));
    else known.add(connection);
  }

  remove(tenantId: string, connection: FrameConnection): void {
    const known = this.#connections.get(tenantId);
    known?.delete(connection);
    if (known?.size === 0) this.#connections.delete(tenantId);
  }

  /** What they have asked and not got they ask elsewhere. */
  sendAway(tenantId: string): void {
    for (const connection of this.#connections.get(tenantId) ?? []) connection.destroy();
  }
}
