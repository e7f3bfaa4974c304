/**
 * Each endpoint of this machine has a port of its own, from its first start on, and no other endpoint ever gets it.
 *
 * A proxy connects where a compute was last before it asks anybody. Branches share roles and passwords: at a port that had
 * passed from one endpoint to another, a login would succeed, in the wrong branch.
 */
import {type Disk, joinPath} from '#runtime/disk.ts';
import {freePort, listenSockets} from '#runtime/net.ts';

const portFile = (computesDir: string, endpointId: string): string => joinPath(computesDir, endpointId, 'port');

/** The endpoint's port, when nobody else listens there; else a new one. Its directory exists. */
export async function portOfCompute(disk: Disk, computesDir: string, endpointId: string): Promise<number> {
  const own = readPort(disk, portFile(computesDir, endpointId));
  if (own !== undefined && (await isFree(own))) return own;
  for (;;) {
    const port = await freePort();
    const others = disk.list(computesDir).filter((id) => id !== endpointId);
    if (others.some((id) => readPort(disk, portFile(computesDir, id)) === port)) continue;
    // Nothing is waited for between looking and writing: two starts at once do not choose the same.
    disk.writeFileAtomic(portFile(computesDir, endpointId), Buffer.from(String(port)));
    return port;
  }
}

function readPort(disk: Disk, path: string): number | undefined {
  if (!disk.exists(path)) return undefined;
  const port = Number(disk.readFile(path).toString('utf8'));
  return Number.isInteger(port) && port > 0 && port < 65_536 ? port : undefined;
}

async function isFree(port: number): Promise<boolean> {
  try {
    const listener = await listenSockets({host: '127.0.0.1', port}, (socket) => socket.destroy());
    await listener.close();
    return true;
  } catch {
    return false;
  }
}
