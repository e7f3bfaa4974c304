/**
 * Objects in a bucket of any S3 server, through the AWS SDK. docs/decisions/0012-object-stores.md says what is relied on:
 * `If-None-Match: *` on PUT, whole objects and ranges by GET, ListObjectsV2, DeleteObjects; never If-Match, never checks by the
 * server. One PUT an object: layers and WAL segments are far below the 5 GiB at which S3 asks for multipart uploads.
 *
 * Each call is one try with a deadline; RetryingObjectStore repeats. The SDK (140 ms, 35 MB) is imported by those who have
 * such a store, at their first call.
 */
import type {GetObjectCommandOutput, S3Client} from '@aws-sdk/client-s3';
import type {Clock} from '#runtime/clock.ts';
import {crc32c} from '#runtime/crc.ts';
import {readSecretFile} from '#runtime/secret-file.ts';
import {dateAt} from '#runtime/time-format.ts';
import {
  type ListedObject,
  type ObjectHead,
  type ObjectStore,
  ObjectStoreError,
  type PutOptions,
  checkObjectKey,
} from './object-store.ts';

export interface S3StoreConfig {
  readonly kind: 's3';
  readonly bucket: string;
  /** Before every key, with a slash at its end; '' or absent: the bucket is ours alone. */
  readonly prefix?: string;
  /** `https://host[:port]`; absent: AWS. */
  readonly endpoint?: string;
  /** Default us-east-1. */
  readonly region?: string;
  /**
   * A private file (mode 0600) with the lines AWS_ACCESS_KEY_ID=… and AWS_SECRET_ACCESS_KEY=…; read again every five minutes, so
   * that keys can be changed without a restart. Absent: what the SDK finds (environment, instance role).
   */
  readonly credentialsFile?: string;
  /** A try ends when nothing has come for so long (default 30 s; a put gets 1 s more for each MiB). */
  readonly tryMsMax?: number;
}

const connectMsMax = 5_000;
const tryMsDefault = 30_000;
const bytesPerExtraMs = 1024;
const socketsMax = 64;
const credentialsMs = 300_000;
const deleteKeysMax = 1000;
const listKeysMax = 1000;

/** Metadata of every object: how many bytes it was written with. */
const lengthName = 'pagoda-length';

type Sdk = typeof import('@aws-sdk/client-s3');

export class S3ObjectStore implements ObjectStore {
  readonly #config: S3StoreConfig;
  readonly #clock: Clock;
  readonly #prefix: string;
  #opened: Promise<{sdk: Sdk; client: S3Client}> | undefined;

  constructor(config: S3StoreConfig, clock: Clock) {
    this.#config = config;
    this.#clock = clock;
    this.#prefix = config.prefix ?? '';
  }

  async put(key: string, bytes: Buffer, options: PutOptions = {}): Promise<void> {
    checkObjectKey(key);
    await this.#try(key, bytes.length, ({sdk, client, abortSignal}) => {
      const sum = Buffer.alloc(4);
      sum.writeUInt32BE(crc32c(bytes));
      return client.send(
        new sdk.PutObjectCommand({
          ...this.#at(key),
          Body: bytes,
          ContentLength: bytes.length,
          ContentType: 'application/octet-stream',
          ChecksumCRC32C: sum.toString('base64'),
          Metadata: {[lengthName]: String(bytes.length)},
          ...(options.ifNoneMatch === undefined ? {} : {IfNoneMatch: options.ifNoneMatch}),
        }),
        {abortSignal},
      );
    });
  }

  async get(key: string): Promise<Buffer> {
    checkObjectKey(key);
    return this.#try(key, 0, async ({sdk, client, abortSignal, progress}) => {
      const answer = await client.send(new sdk.GetObjectCommand(this.#at(key)), {abortSignal});
      const written = answer.Metadata?.[lengthName];
      const bytes = await readBody(key, answer, answer.ContentLength, progress);
      // Somebody between may have cut it and told a smaller length.
      if (written !== undefined && Number(written) !== bytes.length)
        throw new ObjectStoreError('unavailable', key, `${bytes.length} bytes came, ${written} were written`);
      return bytes;
    });
  }

  async getRange(key: string, start: number, length: number): Promise<Buffer> {
    checkObjectKey(key);
    if (length === 0) {
      if ((await this.head(key)) === undefined) throw new ObjectStoreError('not-found', key, 'does not exist');
      return Buffer.alloc(0);
    }
    return this.#try(key, 0, async ({sdk, client, abortSignal, progress}) => {
      const Range = `bytes=${start}-${start + length - 1}`;
      const answer = await client.send(new sdk.GetObjectCommand({...this.#at(key), Range}), {abortSignal});
      const said = /^bytes (\d+)-(\d+)\/(\d+|\*)$/.exec(answer.ContentRange ?? '');
      if (said === null || Number(said[1]) !== start) {
        destroyBody(answer);
        throw new ObjectStoreError('unavailable', key, `asked for ${Range}, the answer is of ${answer.ContentRange}`);
      }
      const total = said[3] === '*' ? undefined : Number(said[3]);
      if (total !== undefined && total < start + length) {
        destroyBody(answer);
        throw new ObjectStoreError('bad-range', key, `${Range} asked, the object has ${total} bytes`);
      }
      return readBody(key, answer, length, progress);
    });
  }

  async head(key: string): Promise<ObjectHead | undefined> {
    checkObjectKey(key);
    try {
      return await this.#try(key, 0, async ({sdk, client, abortSignal}) => {
        const answer = await client.send(new sdk.HeadObjectCommand(this.#at(key)), {abortSignal});
        return {size: answer.ContentLength ?? 0, modifiedMs: answer.LastModified?.getTime() ?? 0};
      });
    } catch (error) {
      if (error instanceof ObjectStoreError && error.code === 'not-found') return undefined;
      throw error;
    }
  }

  async list(prefix: string): Promise<ListedObject[]> {
    const found: ListedObject[] = [];
    for (let token: string | undefined, more = true; more;) {
      const ContinuationToken = token;
      const page = await this.#try(prefix, 0, ({sdk, client, abortSignal}) =>
        client.send(
          new sdk.ListObjectsV2Command({
            Bucket: this.#config.bucket,
            Prefix: this.#prefix + prefix,
            MaxKeys: listKeysMax,
            ...(ContinuationToken === undefined ? {} : {ContinuationToken}),
          }),
          {abortSignal},
        ),
      );
      for (const {Key, Size, LastModified} of page.Contents ?? [])
        if (Key !== undefined)
          found.push({key: Key.slice(this.#prefix.length), size: Size ?? 0, modifiedMs: LastModified?.getTime() ?? 0});
      token = page.NextContinuationToken;
      more = page.IsTruncated === true && token !== undefined;
      if (page.IsTruncated === true && token === undefined)
        throw new ObjectStoreError('unavailable', prefix, 'a list that goes on has no continuation token');
    }
    return found.sort((x, y) => (x.key < y.key ? -1 : 1));
  }

  async delete(keys: readonly string[]): Promise<void> {
    for (const key of keys) checkObjectKey(key);
    for (let i = 0; i < keys.length; i += deleteKeysMax) {
      const some = keys.slice(i, i + deleteKeysMax);
      const first = some[0] ?? '';
      const answer = await this.#try(first, 0, ({sdk, client, abortSignal}) =>
        client.send(
          new sdk.DeleteObjectsCommand({
            Bucket: this.#config.bucket,
            Delete: {Quiet: true, Objects: some.map((key) => ({Key: this.#prefix + key}))},
          }),
          {abortSignal},
        ),
      );
      const failed = (answer.Errors ?? []).find((error) => error.Code !== 'NoSuchKey');
      if (failed !== undefined)
        throw new ObjectStoreError(
          failed.Code === 'AccessDenied' ? 'denied' : 'unavailable',
          failed.Key?.slice(this.#prefix.length) ?? first,
          `not deleted: ${failed.Code ?? 'no code'} ${failed.Message ?? ''}`,
        );
    }
  }

  /** Ends idle connections. */
  close(): void {
    void this.#opened?.then(
      ({client}) => client.destroy(),
      () => {},
    );
    this.#opened = undefined;
  }

  #at(key: string): {Bucket: string; Key: string} {
    return {Bucket: this.#config.bucket, Key: this.#prefix + key};
  }

  #open(): Promise<{sdk: Sdk; client: S3Client}> {
    this.#opened ??= import('@aws-sdk/client-s3').then((sdk) => {
      const {endpoint, region = 'us-east-1', credentialsFile} = this.#config;
      const client = new sdk.S3Client({
        region,
        ...(endpoint === undefined ? {} : {endpoint, forcePathStyle: true}),
        ...(credentialsFile === undefined
          ? {}
          : {
              credentials: async () => ({
                ...readCredentials(credentialsFile),
                expiration: dateAt(this.#clock.nowMs() + credentialsMs),
              }),
            }),
        maxAttempts: 1,
        requestChecksumCalculation: 'WHEN_REQUIRED',
        responseChecksumValidation: 'WHEN_REQUIRED',
        requestHandler: {
          connectionTimeout: connectMsMax,
          httpAgent: {keepAlive: true, maxSockets: socketsMax},
          httpsAgent: {keepAlive: true, maxSockets: socketsMax},
        },
      });
      return {sdk, client};
    });
    return this.#opened;
  }

  /** One try with a deadline; every failure is an ObjectStoreError. */
  async #try<T>(key: string, bytes: number, work: (attempt: Attempt) => Promise<T>): Promise<T> {
    const abort = new AbortController();
    const limitMs = (this.#config.tryMsMax ?? tryMsDefault) + bytes / bytesPerExtraMs;
    let timer = this.#clock.setTimer(limitMs, () => abort.abort());
    const progress = (): void => {
      timer.cancel();
      timer = this.#clock.setTimer(limitMs, () => abort.abort());
    };
    try {
      return await work({...(await this.#open()), abortSignal: abort.signal, progress});
    } catch (error) {
      if (error instanceof ObjectStoreError) throw error;
      if (abort.signal.aborted)
        throw new ObjectStoreError('unavailable', key, `nothing came for ${Math.round(limitMs)} ms`, {
          cause: error,
        });
      throw this.#explain(key, error);
    } finally {
      timer.cancel();
    }
  }

  #explain(key: string, error: unknown): ObjectStoreError {
    const {name, message, $metadata} = error as Error & {$metadata?: {httpStatusCode?: number}};
    const status = $metadata?.httpStatusCode;
    const where = `bucket ${this.#config.bucket}${this.#config.endpoint === undefined ? '' : ` at ${this.#config.endpoint}`}`;
    const make = (code: ObjectStoreError['code'], text: string): ObjectStoreError =>
      new ObjectStoreError(code, key, text, {cause: error});
    if (name === 'NoSuchBucket')
      return make('denied', `there is no ${where}: create it, or correct the object store's configuration`);
    if (name === 'NoSuchKey' || status === 404) return make('not-found', 'does not exist');
    if (name === 'PreconditionFailed' || status === 412) return make('exists', 'is already there');
    if (name === 'InvalidRange' || status === 416) return make('bad-range', 'the object ends before the range');
    if (status === 507 || name === 'QuotaExceeded' || name === 'InsufficientCapacity')
      return make('full', `no space left in ${where}`);
    if (status === 401 || status === 403 || name === 'CredentialsProviderError' || name === 'CredentialsFileError')
      return make('denied', `${where} refuses (${name}): ${message}; look at the object store's credentials`);
    return make('unavailable', `${name}${status === undefined ? '' : ` ${status}`}: ${message} (${where})`);
  }
}

interface Attempt {
  readonly sdk: Sdk;
  readonly client: S3Client;
  readonly abortSignal: AbortSignal;
  /** Something came: the deadline starts anew. */
  readonly progress: () => void;
}

/** Exactly `length` bytes, or 'unavailable': a connection that broke, or a server that miscounts. */
async function readBody(
  key: string,
  answer: GetObjectCommandOutput,
  length: number | undefined,
  progress: () => void,
): Promise<Buffer> {
  const body = answer.Body as AsyncIterable<Buffer> | undefined;
  if (body === undefined || length === undefined)
    throw new ObjectStoreError('unavailable', key, 'an answer without a body or a length');
  const bytes = Buffer.allocUnsafeSlow(length);
  let have = 0;
  for await (const chunk of body) {
    if (have + chunk.length > length) {
      destroyBody(answer);
      throw new ObjectStoreError('unavailable', key, `more than the ${length} bytes that were to come`);
    }
    have += chunk.copy(bytes, have);
    progress();
  }
  if (have !== length) throw new ObjectStoreError('unavailable', key, `${have} of ${length} bytes came`);
  return bytes;
}

function destroyBody(answer: GetObjectCommandOutput): void {
  (answer.Body as {destroy?: () => void} | undefined)?.destroy?.();
}

function readCredentials(path: string): {accessKeyId: string; secretAccessKey: string} {
  const values = new Map<string, string>();
  for (const line of readSecretFile(path).split('\n')) {
    const match = /^\s*(?:export\s+)?([A-Z_]+)\s*=\s*(\S+)\s*$/.exec(line);
    if (match) values.set(match[1]!, match[2]!);
  }
  const accessKeyId = values.get('AWS_ACCESS_KEY_ID');
  const secretAccessKey = values.get('AWS_SECRET_ACCESS_KEY');
  if (accessKeyId === undefined || secretAccessKey === undefined) {
    const error = new Error(`${path} needs the lines AWS_ACCESS_KEY_ID=… and AWS_SECRET_ACCESS_KEY=…`);
    error.name = 'CredentialsFileError';
    throw error;
  }
  return {accessKeyId, secretAccessKey};
}
