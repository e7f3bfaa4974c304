/**
 * What keeps the nodes of a cell apart on one machine (root only): a network namespace for each, all on one bridge, and a file
 * system of its own on a loop device for each safekeeper, so that it can be filled.
 */
import {execFile, execFileSync} from 'node:child_process';
import {mkdirSync, rmSync} from 'node:fs';
import {statfs} from 'node:fs/promises';
import {join} from 'node:path';
import {promisify} from 'node:util';

const freeBlocksMax = 64;
const fillRounds = 10;

interface Namespace {
  readonly name: string;
  readonly ip: string;
  /** The bridge's end of its cable. */
  readonly cable: string;
}

export class Isolation {
  /** This machine, as the nodes see it. */
  readonly gateway: string;
  readonly #bridge: string;
  readonly #namespaces = new Map<string, Namespace>();
  readonly #mounts = new Map<string, string>();

  /** `base`: first of the cell's ports, so that two cells do not meet. */
  constructor(base: number) {
    const subnet = `10.77.${Math.floor((base - 20_000) / 40) % 250}`;
    this.gateway = `${subnet}.1`;
    this.#bridge = `pgb${base}`;
    ip('link', 'add', this.#bridge, 'type', 'bridge');
    ip('addr', 'add', `${this.gateway}/24`, 'dev', this.#bridge);
    ip('link', 'set', this.#bridge, 'up');
  }

  addNode(node: string): void {
    const n = this.#namespaces.size;
    const name = `${this.#bridge}-${n}`;
    const ns = {name, ip: `${this.gateway}${n}`, cable: `${this.#bridge}.${n}`};
    this.#namespaces.set(node, ns);
    ip('netns', 'add', name);
    ip('link', 'add', ns.cable, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', name);
    ip('link', 'set', ns.cable, 'master', this.#bridge, 'up');
    ip('-n', name, 'addr', 'add', `${ns.ip}/24`, 'dev', 'eth0');
    ip('-n', name, 'link', 'set', 'eth0', 'up');
    ip('-n', name, 'link', 'set', 'lo', 'up');
  }

  /** A file system of that size, backed by `image`, at `target`. */
  addDisk(node: string, image: string, target: string, bytes: number): void {
    execFileSync('truncate', ['-s', String(bytes), image]);
    execFileSync('mkfs.ext4', ['-q', '-m', '0', '-F', image], {stdio: 'ignore'});
    mkdirSync(target, {recursive: true});
    execFileSync('mount', ['-o', 'loop', image, target]);
    this.#mounts.set(node, target);
  }

  addressOf(node: string): string | undefined {
    return this.#namespaces.get(node)?.ip;
  }

  /** The command, run in the node's namespace if it has one. */
  command(node: string, command: readonly string[]): readonly string[] {
    const ns = this.#namespaces.get(node);
    return ns === undefined ? command : ['ip', 'netns', 'exec', ns.name, ...command];
  }

  /** The node's cable is pulled; `sends-lost`: its peers' words still arrive. */
  partition(node: string, how: 'both' | 'sends-lost'): void {
    const ns = this.#namespace(node);
    if (how === 'both') ip('link', 'set', ns.cable, 'down');
    else ip('-n', ns.name, 'route', 'replace', 'blackhole', `${this.gateway}/32`);
  }

  heal(node: string): void {
    const ns = this.#namespace(node);
    ip('link', 'set', ns.cable, 'up');
    quietly(() => ip('-n', ns.name, 'route', 'del', 'blackhole', `${this.gateway}/32`));
  }

  /** Leaves no byte free on the node's file system. Not synchronous: the links live in this process. */
  async fillDisk(node: string): Promise<void> {
    const target = this.#mount(node);
    let size = 0;
    // Again when something was freed meanwhile; a few blocks are left to the file system's own needs.
    for (let round = 0, left = Infinity; left > freeBlocksMax; round++) {
      const {bavail, bsize} = await statfs(target);
      left = bavail;
      if (round === fillRounds) throw new Error(`${node}: ${bavail} blocks stay free on its disk`);
      // fallocate takes all or nothing: halve until nothing fits any more.
      for (let part = bavail * bsize; part >= bsize; part = Math.floor(part / 2))
        if (await fits(join(target, 'ballast'), size + part)) size += part;
    }
  }

  emptyDisk(node: string): void {
    rmSync(join(this.#mount(node), 'ballast'), {force: true});
  }

  /** No process may be left in it. */
  remove(): void {
    for (const target of this.#mounts.values())
      quietly(() => execFileSync('umount', ['-l', target], {stdio: 'ignore'}));
    for (const ns of this.#namespaces.values()) quietly(() => ip('netns', 'del', ns.name));
    quietly(() => ip('link', 'del', this.#bridge));
  }

  #namespace(node: string): Namespace {
    const ns = this.#namespaces.get(node);
    if (ns === undefined) throw new Error(`${node} has no network namespace`);
    return ns;
  }
  #mount(node: string): string {
    const target = this.#mounts.get(node);
    if (target === undefined) throw new Error(`${node} has no file system of its own`);
    return target;
  }
}

function ip(...args: string[]): void {
  execFileSync('ip', args, {stdio: ['ignore', 'ignore', 'pipe']});
}

function quietly(fn: () => unknown): void {
  try {
    fn();
  } catch {
    // it is not there, or not any more
  }
}

async function fits(path: string, size: number): Promise<boolean> {
  try {
    await promisify(execFile)('fallocate', ['-l', String(size), path]);
    return true;
  } catch {
    return false;
  }
}
