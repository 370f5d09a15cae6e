#!/bin/sh
echo evil
