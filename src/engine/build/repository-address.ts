/** Where a repository may lie. @param refuse says why it does not */
export function repositoryAddress(address: string, refuse: (why: string) => never): URL {
  if (/^ssh:|^[\w.-]+@[\w.-]+:/i.test(address))
    return refuse(
      'a repository is fetched by https, http or git, not by ssh: no key of this host is shown to anybody',
    )
  if (!URL.canParse(address)) return refuse('it is no address')
  const url = new URL(address)
  if (!['https:', 'http:', 'git:'].includes(url.protocol))
    return refuse('a repository is fetched by https, http or git')
  if (url.username !== '' || url.password !== '') return refuse('no name and password can stand in it')
  if (url.hostname === '' || url.search !== '') return refuse('a repository has a host and a path')
  return url
}
